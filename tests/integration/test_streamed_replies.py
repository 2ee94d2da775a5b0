"""Goal: large answers of reads, which leave piece by piece while later rows are gathered, are right
to the last bit for any client, in any company. Method: a store with rows on NVMe, behind a listener
on asyncio and on uvloop; stock pycapnp and our own connection ask, NumPy knows the answers."""

import asyncio
from pathlib import Path
from typing import Any

import capnp
import numpy as np
import pytest
from support.numbered import Numbered
from support.stock import StockSession, stock_session
from support.wired import Raw, Served, raw, serving

from hybridps import _core

MIB = 1 << 20
# Rows of more bytes than this are streamed, in pieces of a mebibyte.
WHOLE_MAX = MIB + MIB // 2
ROWS = {1: 250_000, 3: 120_000, 17: 100_000, 64: 40_000}
KEYS_MAX = 700_000


def counts_of_keys(dim: int) -> list[int]:
    """Around the size that is streamed, around the ends of pieces, and far above."""
    row = 4 * dim
    counts = [WHOLE_MAX // row + more for more in (-40, -2, -1, 0, 1, 2)]
    counts += [2 * MIB // row, 2 * MIB // row + 1, 3 * MIB // row + 3, 12 * MIB // row + 1]
    return sorted({min(count, KEYS_MAX) for count in counts})


async def stock_lookup(
    session: StockSession, batches: list[tuple[Numbered, Any]], want_found: bool
) -> None:
    tables = [{"table": table.id, "keys": keys.tobytes()} for table, keys in batches]
    reply = await session.remote.lookup(tables=tables, wantFound=want_found)
    assert len(reply.tables) == len(batches)
    for (table, keys), answer in zip(batches, reply.tables, strict=True):
        assert len(answer.found) == (len(keys) if want_found else 0)
        table.check(keys, answer.rows, answer.found if want_found else None)


def check_answer(answer: _core.Answer, batches: list[tuple[Numbered, Any]]) -> None:
    assert answer.kind == "rows", answer.exception
    for (table, keys), (rows, found) in zip(batches, answer.rows, strict=True):
        table.check(keys, rows, found)


def ask(peer: Raw, batches: list[tuple[Numbered, Any]], want_found: bool) -> int:
    tables = [(table.id, keys) for table, keys in batches]
    return peer.send(peer.machine.lookup(tables, want_found))


@pytest.mark.parametrize("dim", ROWS)
def test_any_size_around_the_threshold_and_far_above(run: Any, tmp_path: Path, dim: int) -> None:
    async def main() -> None:
        # Rows of one number are read by the hundred thousand; a device read each would take long.
        dram = 8 * MIB if dim > 1 else 64 * MIB
        async with serving(tmp_path, dram=dram) as served, raw(served) as peer:
            table = Numbered(served, dim, ROWS[dim])
            assert dim == 1 or served.store.table_stats(table.id)["rows_nvme"] > 10_000
            await peer.start()
            async with capnp.kj_loop(), stock_session(served.path) as session:
                for seed, count in enumerate(counts_of_keys(dim)):
                    batches = [(table, table.sample(count, seed))]
                    await stock_lookup(session, batches, bool(seed % 2))
                    ask(peer, batches, not seed % 2)
                    check_answer(await peer.answer(), batches)

    run(main())


def test_many_tables_in_one_call_with_empty_batches_between(run: Any, tmp_path: Path) -> None:
    random = np.random.default_rng(5)

    def batches(tables: list[Numbered]) -> list[tuple[Numbered, Any]]:
        """Eight to twelve megabytes; about a third of the batches are empty, or of one key."""
        batches, left = [], int(random.integers(8 * MIB, 12 * MIB))
        while left > 0:
            table = tables[int(random.integers(len(tables)))]
            most = min(left, int(random.integers(1, 4 * MIB))) // (4 * table.dim) + 1
            count = [0, 1, most, most, most + 1, most | 1][int(random.integers(6))]
            count = min(count, 100_000)
            batches.append((table, table.sample(count, int(random.integers(1 << 30)))))
            left -= 4 * table.dim * count + 100_000
        return [(tables[0], table_end(tables[0])), *batches, (tables[1], table_end(tables[1]))]

    def table_end(table: Numbered) -> Any:
        return table.sample(0, 0)

    async def main() -> None:
        async with serving(tmp_path, dram=16 * MIB) as served, raw(served) as peer:
            tables = [Numbered(served, dim, rows // 2) for dim, rows in ROWS.items()]
            await peer.start()
            async with capnp.kj_loop(), stock_session(served.path) as session:
                for n in range(6):
                    asked = batches(tables)
                    await stock_lookup(session, asked, n % 2 == 0)
                    ask(peer, asked, n % 2 == 1)
                    check_answer(await peer.answer(), asked)

    run(main())


def test_a_training_read_creates_and_repeats_in_any_piece(run: Any, tmp_path: Path) -> None:
    """Half of the keys are new; each comes three times, so nearly always in several pieces."""

    async def main() -> None:
        async with serving(tmp_path, dram=12 * MIB) as served:
            table = Numbered(served, 17, 40_000)
            keys = np.random.default_rng(1).permutation(np.tile(table.sample(20_000, 2), 3))
            old, found = table.expected(keys)
            expected = np.where(found[:, None], old, table.initial(keys))
            batch = {"table": table.id, "keys": keys.tobytes()}
            counts = np.ones(len(keys), np.uint32).tobytes()
            async with capnp.kj_loop(), stock_session(served.path) as session:
                for more in ({"counts": counts}, {}, {"counts": counts}):
                    reply = await session.remote.lookupOrInsert(tables=[batch | more])
                    table.check_rows(expected, reply.tables[0].rows)
                    assert len(reply.tables[0].found) == 0
            ((rows, _),) = served.store.lookup([(table.id, keys)], False)
            table.check_rows(expected, rows)
            new = len(np.unique(keys[~found]))
            assert served.store.size(table.id) == table.rows + new

    run(main())


def test_the_largest_reply_that_fits_the_limit(run: Any, tmp_path: Path) -> None:
    """With its segments a streamed reply is no longer than what a client of that limit reads."""
    limit = 2 * MIB

    async def main() -> None:
        async with serving(tmp_path, frame_bytes=limit) as served, raw(served) as peer:
            table = Numbered(served, 64, 100)
            peer.machine = _core.ClientConnection(frame_limit=limit)
            await peer.start()
            keys = table.sample(limit // 256 + 1, 1)
            for want_found in (False, True):
                row = 256 + want_found
                answered = []
                for count in range(limit // row - 8, limit // row + 1):
                    ask(peer, [(table, keys[:count])], want_found)
                    answer = await peer.answer()
                    if answer.kind == "rows":
                        check_answer(answer, [(table, keys[:count])])
                        answered.append(count)
                    else:
                        assert answer.exception[1] == "BadInputError"
                assert 1 <= len(answered) <= 8

    run(main())


def test_many_large_calls_in_flight_beside_small_ones_and_cold_verbs(
    run: Any, tmp_path: Path
) -> None:
    """All sent at once over one connection; every answer is right, whatever was sent between."""

    async def main() -> None:
        async with serving(tmp_path, dram=16 * MIB) as served, raw(served) as peer:
            tables = [Numbered(served, dim, ROWS[dim]) for dim in (3, 64)]
            served.service.handlers["tables"] = lambda *_: None
            await peer.start()
            asked: dict[int, list[tuple[Numbered, Any]] | None] = {}
            for n in range(40):
                table = tables[n % 2]
                count = [3, 2 * MIB, 1, 5 * MIB, 100_000][n % 5] // (4 * table.dim) + 1
                batches = [(table, table.sample(count, n))]
                asked[ask(peer, batches, n % 3 == 0)] = batches
                if n % 4 == 0:
                    asked[peer.cold("tables")] = None
            for answer in await peer.answers(len(asked)):
                batches_ = asked.pop(answer.question)
                if batches_ is None:
                    assert answer.kind == "results"
                else:
                    check_answer(answer, batches_)
            assert not asked
            await served.settled()

    run(main())


def test_stock_clients_side_by_side(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, dram=16 * MIB) as served:
            table = Numbered(served, 17, 40_000)

            async def reads(session: StockSession, seed: int) -> None:
                calls = [
                    stock_lookup(session, [(table, table.sample(count, seed))], want_found)
                    for count in (100, 60_000, 1, 90_001)
                    for want_found in (False, True)
                ]
                await asyncio.gather(*calls)

            path = served.path
            async with capnp.kj_loop(), stock_session(path) as one, stock_session(path) as two:
                await asyncio.gather(*[reads(s, n) for n, s in enumerate((one, two, one, two))])
            await served.idle()

    run(main())


async def rows_of(served: Served, table: Numbered, keys: Any) -> Any:
    ((rows, _),) = served.store.lookup([(table.id, keys)], False)
    return rows


def test_a_push_waits_for_the_whole_of_the_read_before_it(run: Any, tmp_path: Path) -> None:
    """The read is 12 MiB, of which the peer takes nothing at first: it cannot be gathered whole.
    What is gathered later must not see the push behind it, and the read after the push must."""

    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer:
            table = Numbered(served, 64, 40_000)
            await peer.start()
            peer.writer.transport.pause_reading()
            keys = np.arange(0, 80_000, 2, dtype=np.uint64)[: 12 * MIB // 256]
            before = await rows_of(served, table, keys)
            gradients = np.ones((len(keys), table.dim), np.float32)
            half = slice(0, None, 5)
            batch = (table.id, keys[half].copy(), gradients[half].copy())
            first = ask(peer, [(table, keys)], False)
            push = peer.send(peer.machine.apply_gradients(1, None, [batch]))
            second = ask(peer, [(table, keys)], False)
            await asyncio.sleep(0.3)
            table.check_rows(before, await rows_of(served, table, keys))
            peer.writer.transport.resume_reading()
            answers = {answer.question: answer for answer in await peer.answers(3)}
            after = before.copy()
            after[half] -= 1
            assert answers[push].duplicate is False
            table.check_rows(before, answers[first].rows[0][0])
            table.check_rows(after, answers[second].rows[0][0])
            table.check_rows(after, await rows_of(served, table, keys))

    run(main())


@pytest.mark.parametrize("pause_s", [0.0, 0.2])
def test_a_large_read_that_is_given_up(run: Any, tmp_path: Path, pause_s: float) -> None:
    """Finish comes before a byte was read, or when some pieces have left: others are answered."""

    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer:
            table = Numbered(served, 64, 40_000)
            await peer.start()
            for n in range(5):
                batches = [(table, table.sample(40_000, n))]
                peer.writer.transport.pause_reading()
                peer.machine.forget(ask(peer, batches, True))
                await asyncio.sleep(pause_s)
                peer.writer.write(peer.machine.pending_bytes())
                kept = ask(peer, batches, True)
                peer.writer.transport.resume_reading()
                answer = await peer.answer()
                assert answer.question == kept
                check_answer(answer, batches)
            await served.settled()

    run(main())
