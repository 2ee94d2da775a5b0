"""Goal: a large read that fails when half of its answer has left fails like any other: by class and
text, over a connection that lives on; and whatever ends a connection in the middle of an answer
leaves nothing held. Method: caps, damage, drops and dying peers in the middle of a streamed reply,
on asyncio and on uvloop."""

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capnp
import numpy as np
import pytest
from support.numbered import Numbered
from support.stock import StockSession, stock_session
from support.wired import Raw, Served, raw, serving

from hybridps.errors import CorruptionError
from hybridps.verbs.kinds import Lane

MIB = 1 << 20
DIM = 64
# A piece of a streamed reply, in bytes and in rows.
PIECE_BYTES = MIB // 2
PIECE = PIECE_BYTES // (4 * DIM)
FULL = (
    r"table .numbered-64.: .* new keys would take its rows to \d+ bytes .* raise the table's nvme"
)
# What may be gathered of a reply that nobody reads: what the socket holds (the kernel allows twice
# what it is told), two pieces that wait,
# one that is sent and one that was being gathered.
GATHERED_MAX = 2 * 2 * MIB + 4 * PIECE_BYTES


def ask(peer: Raw, table: Numbered, keys: Any) -> int:
    return peer.send(peer.machine.lookup([(table.id, keys)], True))


async def check_alive(peer: Raw, table: Numbered, keys: Any) -> None:
    """The same connection answers, also with a streamed reply."""
    for part in (keys[:10], keys):
        question = ask(peer, table, part)
        answer = await peer.answer()
        assert answer.question == question
        assert answer.kind == "rows", answer.exception
        table.check(part, *answer.rows[0])


def new_keys(table: Numbered, count: int) -> Any:
    return np.arange(2 * table.rows, 2 * table.rows + count, dtype=np.uint64)


async def check_stock_failure(session: StockSession, call: Any, reason: str) -> None:
    with pytest.raises(capnp.KjException, match=reason):
        await call
    # Nothing of it is left in the way of what follows.
    assert await session.hello(9) == 0


@pytest.mark.parametrize("rows_until_full", [PIECE // 2, 3 * PIECE // 2, 6 * PIECE])
def test_a_table_that_is_full_after_some_pieces(
    run: Any, tmp_path: Path, rows_until_full: int
) -> None:
    """A cap of the table stops a training read: at once, in the second piece, near the last."""

    async def main() -> None:
        async with serving(tmp_path, dram=8 * MIB) as served, raw(served) as peer:
            table = Numbered(served, DIM, 30_000)
            cap = record_bytes(served, table) * (30_000 + rows_until_full)
            served.store.alter(table.id, f'{{"nvme": {cap}}}')
            await peer.start()
            keys = new_keys(table, 8 * PIECE)
            peer.send(peer.machine.lookup_or_insert([(table.id, keys, None)]))
            kind, name, text = (await peer.answer()).exception
            assert (kind, name) == ("failed", "StoreFullError")
            assert re.fullmatch(FULL + ", or remove keys", text)
            made = served.store.size(table.id) - table.rows
            assert made <= rows_until_full
            # Pieces are gathered side by side: those at the end share what room there was.
            assert made >= rows_until_full - 2 * PIECE, "pieces before were not answered"
            await served.settled()
            assert ("lookupOrInsert", "StoreFullError") in served.counts.observed
            await check_alive(peer, table, table.sample(20_000, 1))
            batch = {"table": table.id, "keys": (keys + 100_000).tobytes()}
            async with capnp.kj_loop(), stock_session(served.path) as session:
                call = session.remote.lookupOrInsert(tables=[batch])
                await check_stock_failure(session, call, "StoreFullError: " + FULL)
            await served.settled()

    run(main())


def record_bytes(served: Served, table: Numbered) -> int:
    """What the table's cap counts for one row: rows on NVMe times this are `nvme_bytes`."""
    stats = served.store.table_stats(table.id)
    assert stats["rows_nvme"] > 0
    return stats["nvme_bytes"] // stats["rows_nvme"]


def damage(served: Served, folder: Path, table: Numbered, keys: Any) -> int:
    """Flips a bit in the record of one key whose row is on NVMe alone; which key."""
    log = (folder / "data" / "rows.log").read_bytes()
    for key in keys:
        one = np.array([key], np.uint64)
        at = log.find(table.expected(one)[0].tobytes())
        if at < 0:
            continue
        with (folder / "data" / "rows.log").open("r+b") as file:
            file.seek(at)
            file.write(bytes([log[at] ^ 1]))
            file.flush()
            os.fsync(file.fileno())
        try:
            served.store.lookup([(table.id, one)], False)
        except CorruptionError:
            return int(key)
    raise AssertionError("no row was found in rows.log")


@pytest.mark.parametrize("at", [0, PIECE + 1, 9 * PIECE + 1], ids=["first", "second", "last"])
def test_a_damaged_record_in_any_piece(run: Any, tmp_path: Path, at: int) -> None:
    async def main() -> None:
        async with serving(tmp_path, dram=8 * MIB) as served, raw(served) as peer:
            table = Numbered(served, DIM, 50_000)
            served.store.flush()
            await peer.start()
            keys = np.random.default_rng(3).permutation(np.arange(0, 100_000, 2, dtype=np.uint64))
            lost = damage(served, tmp_path, table, keys[:2000])
            keys = keys[keys != lost][: 9 * PIECE + 2]
            keys = np.insert(keys, at, lost)
            question = ask(peer, table, keys)
            answer = await peer.answer()
            assert (answer.question, answer.kind) == (question, "exception")
            kind, name, text = answer.exception
            assert (kind, name) == ("failed", "CorruptionError")
            assert "rows.log" in text
            await check_alive(peer, table, keys[keys != lost])
            batch = {"table": table.id, "keys": keys.tobytes()}
            async with capnp.kj_loop(), stock_session(served.path) as session:
                call = session.remote.lookup(tables=[batch], wantFound=True)
                await check_stock_failure(session, call, "CorruptionError: .*rows.log")
            await served.settled()

    run(main())


def test_a_table_that_is_dropped_under_its_reader(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer:
            table, other = Numbered(served, DIM, 30_000), Numbered(served, 3, 1000)
            await peer.start()
            peer.writer.transport.pause_reading()
            ask(peer, table, table.sample(60_000, 1))
            ask(peer, other, other.sample(1000, 1))
            await asyncio.sleep(0.3)
            served.store.drop_table("numbered-64")
            peer.writer.transport.resume_reading()
            answers = await peer.answers(2)
            (failed,) = [answer for answer in answers if answer.kind == "exception"]
            assert failed.exception[1] == "TableNotFoundError"
            (rows,) = [answer for answer in answers if answer.kind == "rows"]
            other.check(other.sample(1000, 1), *rows.rows[0])
            await check_alive(peer, other, other.sample(500_000, 2))

    run(main())


def test_a_thread_that_fails_in_the_middle_costs_one_connection(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a reply cannot be taken back, nor be followed by another."""

    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer, raw(served) as other:
            table = Numbered(served, DIM, 10_000)
            await peer.start()
            await other.start(6)
            runs, works = served.threads.run, iter([True, False])

            async def failing(lane: Lane, function: Callable[..., Any], *arguments: Any) -> Any:
                if not next(works, True):
                    raise MemoryError
                return await runs(lane, function, *arguments)

            served.threads.run = failing  # type: ignore[method-assign]
            ask(peer, table, table.sample(60_000, 1))
            assert await peer.ending() == ""
            assert "call failed inside the server" in caplog.text
            await check_alive(other, table, table.sample(20_000, 2))
            await served.settled()
            assert served.listener.connections == 1

    run(main())


def gathered(served: Served, table: Numbered) -> int:
    """Bytes of rows that were looked up so far."""
    return served.store.table_stats(table.id)["unique_keys"] * 4 * DIM


@pytest.mark.parametrize("ending", ["reset", "close", "read"])
def test_a_peer_that_does_not_read_holds_a_few_pieces(
    run: Any, tmp_path: Path, ending: str
) -> None:
    """Four large reads of three peers: what is not read is not gathered, others are served.
    Then the peers vanish, or read everything after all; nothing is held any more."""

    async def main() -> None:
        async with serving(tmp_path, inflight_bytes=1 << 30) as served, raw(served) as other:
            table = Numbered(served, DIM, 40_000)
            await other.start()
            async with raw(served) as one, raw(served) as two, raw(served) as three:
                deaf = [one, two, three]
                for n, peer in enumerate(deaf):
                    await peer.start(10 + n)
                    peer.writer.transport.pause_reading()
                before = gathered(served, table)
                for peer in deaf:
                    for seed in range(4):
                        ask(peer, table, table.sample(60_000, seed))
                await asyncio.sleep(0.5)
                # Of each peer's calls the first is sent; those behind it have not begun.
                assert 0 < gathered(served, table) - before <= 3 * GATHERED_MAX
                assert served.listener.inflight_bytes > 3 * 4 * 14 * MIB
                await check_alive(other, table, table.sample(20_000, 2))
                await leave(deaf, ending, table)
            await served.settled()
            await check_alive(other, table, table.sample(20_000, 3))

    run(main())


async def leave(peers: list[Raw], ending: str, table: Numbered) -> None:
    for peer in peers:
        if ending == "reset":
            peer.writer.transport.abort()
        elif ending == "close":
            peer.writer.close()
        else:
            peer.writer.transport.resume_reading()
            answers = sorted(await peer.answers(4), key=lambda answer: answer.question)
            for seed, answer in enumerate(answers):
                table.check(table.sample(60_000, seed), *answer.rows[0])


def test_a_drain_completes_a_reply_that_is_half_sent(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer:
            table = Numbered(served, DIM, 40_000)
            await peer.start()
            peer.writer.transport.pause_reading()
            keys = [table.sample(60_000, seed) for seed in (1, 2)]
            questions = [ask(peer, table, part) for part in keys]
            async with asyncio.timeout(20):
                while served.listener.inflight_bytes < 28 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            drain = asyncio.create_task(served.listener.drain(20))
            await asyncio.sleep(0.2)
            assert not drain.done()
            peer.writer.transport.resume_reading()
            answers = {answer.question: answer for answer in await peer.answers(2)}
            for question, part in zip(questions, keys, strict=True):
                table.check(part, *answers[question].rows[0])
            assert await peer.ending() == ""
            await drain
            await served.idle()

    run(main())
