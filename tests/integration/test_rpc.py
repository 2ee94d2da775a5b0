"""Goal: anybody who speaks rpc.capnp can use every verb, and both codecs of ours agree with Cap'n
Proto's own. Method: an unmodified pycapnp client against our listener, our client against a
pycapnp server, and both of ours against each other, on asyncio and uvloop."""

import asyncio
import re
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import capnp
import numpy as np
import pytest
from support.stock import SCHEMA, StockSession, pack, stock_session
from support.wired import DIM, Raw, Served, feed, limits, raw, serving

from hybridps import _core
from hybridps.rpc import schemas

KEYS = [3, 1, 2**64 - 1, 3]


@asynccontextmanager
async def stock(served: Served) -> AsyncIterator[StockSession]:
    async with capnp.kj_loop(), stock_session(served.path) as session:
        yield session


def test_the_compiled_names_are_those_of_the_schema() -> None:
    session = SCHEMA.Session.schema
    machine = _core.ClientConnection()
    for ordinal, verb in enumerate(session.method_names):
        frame = b"".join(machine.call(verb, schemas.new_params(verb).to_bytes())[1])
        # Call: question and method, then interface.
        assert struct.pack("<HH", ordinal, 0) in frame, verb
        assert struct.pack("<Q", session.node.id) in frame
    with pytest.raises(ValueError, match="no verb"):
        machine.call("nonsense", b"")
    assert struct.pack("<Q", SCHEMA.Gate.schema.node.id) in machine.start(1, "")[1]


def test_stock_client_reads_and_trains(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, stock(served) as session:
            assert await session.hello(77) == 0
            table = served.table
            assert not (await session.lookup(table, KEYS, DIM)).any()
            assert (await read_or_insert(session, table, KEYS) == 0.5).all()
            gradients = np.arange(4 * DIM, dtype=np.float32).reshape(4, DIM)
            assert not await session.apply_gradients(table, KEYS, gradients)
            assert (await session.start_push(table, KEYS, gradients, 1)).duplicate
            rows = await session.lookup(table, KEYS, DIM)
            summed = gradients[0] + gradients[3]
            expected = 0.5 - np.stack([summed, gradients[1], gradients[2], summed])
            np.testing.assert_array_equal(rows, expected)

    run(main())


async def read_or_insert(session: StockSession, table: int, keys: list[int]) -> Any:
    counts = np.ones(len(keys), np.uint32).tobytes()
    batches = [{"table": table, "keys": pack(keys), "counts": counts}]
    reply = await session.remote.lookupOrInsert(tables=batches)
    return np.frombuffer(reply.tables[0].rows, np.float32).reshape(len(keys), DIM)


def test_found_flags_and_many_tables_in_one_call(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, stock(served) as session:
            table = served.table
            await read_or_insert(session, table, [1, 2, 3])
            batches = [
                {"table": table, "keys": pack([1, 9])},
                {"table": table, "keys": b""},
                {"table": table, "keys": pack([9, 8, 2])},
            ]
            reply = await session.remote.lookup(tables=batches, wantFound=True)
            assert [bytes(t.found) for t in reply.tables] == [b"\1\0", b"", b"\0\0\1"]
            assert [len(t.rows) for t in reply.tables] == [2 * DIM * 4, 0, 3 * DIM * 4]
            reply = await session.remote.lookup(tables=[], wantFound=True)
            assert len(reply.tables) == 0

    run(main())


def test_every_cold_verb_reaches_the_service_and_comes_back(run: Any, tmp_path: Path) -> None:
    """Each with its params in and its results out; none may be forgotten here."""
    big = np.arange(100_000, dtype=np.uint64).tobytes()

    async def main() -> None:
        async with serving(tmp_path) as served, stock(served) as session:
            await session.hello(5)
            seen: dict[str, Any] = {}

            def handler(verb: str, answer: dict[str, Any]) -> Callable[..., None]:
                def handle(_caller: Any, params: Any, results: Any) -> None:
                    seen[verb] = params.to_dict()
                    results.from_dict(answer)

                return handle

            spec = {"name": "n", "dim": 8, "optimizer": {"learningRate": 0.5, "sgd": None}}
            info = {"id": 3, "spec": spec, "warnings": ["a", "b" * 5000]}
            counters = [{"name": "keys", "value": 2**63}]
            cases: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
                "createTable": ({"spec": spec}, {"table": info}),
                "table": ({"name": "n"}, {"table": info}),
                "tables": ({}, {"names": [str(n) for n in range(5000)]}),
                "dropTable": ({"name": "n"}, {}),
                "setLearningRate": ({"table": 1, "learningRate": 0.25}, {}),
                "alter": ({"table": 1, "change": {"dram": {"value": 5}}}, {}),
                "size": ({"table": 1}, {"keys": 12}),
                "keys": ({"table": 1, "bucket": 4}, {"keys": big, "next": 4096}),
                "tableStats": ({"table": 1}, {"counters": counters}),
                "stats": ({}, {"counters": counters}),
                "inspect": ({"table": 1, "keys": big}, {"rows": [{"key": 2**64 - 1}]}),
                "statistics": ({"table": 1, "keys": big}, {"tier": b"\0\3", "lastSeen": big}),
                "exportRows": (
                    {"table": 1, "start": 0, "end": 2**36, "wantSlots": True, "bytes": 9},
                    {"keys": big, "rows": big, "next": 2**36},
                ),
                "scrub": ({"start": 5, "bytes": 6}, {"next": 7, "damaged": [{"table": "t"}]}),
                "flush": ({}, {}),
                "expire": ({"table": 1, "bucket": 5}, {"removed": 2**40, "next": 9}),
                "checkpoint": ({"job": "j", "request": "{}"}, {"answer": "{}"}),
                "restore": ({"job": "j", "request": "{}"}, {"answer": "[]"}),
                "cursor": ({}, {"sequence": 2**63, "tables": [{"name": "t", "dim": 8}]}),
                "staleness": ({}, {"milliseconds": 2**64 - 1}),
                "changes": (
                    {"table": 1, "start": 5, "end": 2**36},
                    {"keys": big, "rows": big, "next": 9},
                ),
            }
            hot = {"lookup", "lookupOrInsert", "lookupPooled", "applyGradients", "prefetch"}
            hot |= {"assign", "scatter", "importRows", "remove"}
            assert set(cases) | hot | {"hello"} == set(SCHEMA.Session.schema.method_names)
            for verb, (params, answer) in cases.items():
                served.service.handlers[verb] = handler(verb, answer)
                # By position: pycapnp takes `name` for itself.
                reply = (await getattr(session.remote, verb)(*params.values())).to_dict()
                contains(seen[verb], params)
                contains(reply, answer)
            assert served.service.calls == ["hello", *cases]

    run(main())


def test_verbs_with_arrays_answer_a_stock_client(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, stock(served) as session:
            remote, table = session.remote, served.table
            with pytest.raises(capnp.KjException, match="BadInputError: a push before hello"):
                await remote.remove({"number": 1}, table, pack([1]))
            await session.hello(5)
            rows = np.arange(3 * DIM, dtype=np.float32).tobytes()
            await remote.assign({"number": 1}, table, pack([1, 2**63, 3]), rows)
            assert served.store.size(table) == 3
            await remote.prefetch([{"table": table, "keys": pack([1, 99])}])
            reply = await remote.remove({"number": 2}, table, pack([1, 9]))
            assert (reply.removed, served.store.size(table)) == (1, 2)
            twos = np.full((2, DIM), 2, np.float32).tobytes()
            await remote.scatter({"number": 3}, table, pack([3, 3]), twos, "mul")
            ((stored, _),) = served.store.lookup([(table, np.array([3], np.uint64))], False)
            assert stored.tolist() == [[4 * x for x in range(2 * DIM, 3 * DIM)]]
            many = bytes(8 * ((1 << 20) + 1))
            for wrong, reason in (
                (lambda: remote.remove({"number": 0}, table, pack([1])), "push number is 0"),
                (lambda: remote.scatter({"number": 4}, table, pack([3, 3]), twos, 6), "is 6; give"),
                (lambda: remote.remove({"number": 3}, table, b"1234567"), "64-bit words"),
                (lambda: remote.remove({"number": 3}, table, many), "1048577 keys.*keys_limit"),
                (lambda: remote.assign({"number": 3}, table, pack([1]), b"12345"), "32-bit"),
                (lambda: remote.assign({"number": 3}, table, pack([1]), b"1234"), "of dim 4"),
                (lambda: remote.prefetch([{"table": 99, "keys": pack([1])}]), "TableNotFoundError"),
            ):
                with pytest.raises(capnp.KjException, match=reason):
                    await wrong()
            assert served.store.size(table) == 2

    run(main())


def contains(whole: Any, part: Any) -> None:
    """`whole` holds all that `part` names; defaults may be added."""
    if isinstance(part, dict):
        for name, value in part.items():
            contains(whole[name], value)
    elif isinstance(part, list):
        assert len(whole) == len(part)
        for one, other in zip(whole, part, strict=True):
            contains(one, other)
    else:
        assert whole == part


def test_refusals_reach_a_stock_client_by_class_and_text(run: Any, tmp_path: Path) -> None:
    def boom(*_: Any) -> None:
        raise RuntimeError("secret detail of /a/path")

    async def main() -> None:
        async with serving(tmp_path, keys=100) as served, stock(served) as session:
            served.service.handlers["flush"] = boom
            remote = session.remote

            async def refused(call: Any, text: str, kind: str = "FAILED") -> None:
                with pytest.raises(capnp.KjException, match=text) as caught:
                    await call
                assert caught.value.type == kind
                assert "secret" not in str(caught.value)

            def lookup(table: int, keys: bytes) -> Any:
                return remote.lookup(tables=[{"table": table, "keys": keys}])

            gradients = {"table": served.table, "keys": pack([1]), "gradients": bytes(4 * DIM)}
            push = remote.applyGradients(push={"number": 1}, tables=[gradients])
            await refused(push, "BadInputError: a push before hello")
            await session.hello(5)
            await refused(lookup(99, pack([1])), "TableNotFoundError: .*99")
            await refused(lookup(served.table, b"123"), "BadInputError: keys are not whole|whole")
            await refused(lookup(served.table, pack(range(101))), "BadInputError: .*limit")
            short = {**gradients, "gradients": bytes(4 * DIM - 4)}
            await refused(
                remote.applyGradients(push={"number": 1}, tables=[short]), "BadInputError: .*item"
            )
            odd = {**gradients, "gradients": bytes(3)}
            await refused(
                remote.applyGradients(push={"number": 1}, tables=[odd]), "BadInputError: .*3 bytes"
            )
            counts = {"table": served.table, "keys": pack([1, 2]), "counts": bytes(4)}
            await refused(remote.lookupOrInsert(tables=[counts]), "BadInputError: 1 counts for 2")
            await refused(remote.flush(), "HybridPSError: the call failed inside the server")
            # The connection is as good as before.
            assert not (await session.lookup(served.table, KEYS, DIM)).any()

    run(main())


def test_unknown_interfaces_and_methods_are_unimplemented(run: Any, tmp_path: Path) -> None:
    later = tmp_path / "later.capnp"
    session = _core.schema().partition("interface Session {")[2].partition("\n}")[0]
    number = 1 + max(map(int, re.findall(r"^  \w+ @(\d+) ", session, re.MULTILINE)))
    added = f"{session}\n  later @{number} () -> ();"
    later.write_text(_core.schema().replace(session, added))
    newer = capnp.SchemaParser().load(str(later))
    other = tmp_path / "other.capnp"
    other.write_text("@0xe1b2c3d4e5f60718; interface Other { f @0 () -> (); }")
    stranger = capnp.SchemaParser().load(str(other))

    async def main() -> None:
        async with serving(tmp_path) as served, capnp.kj_loop():
            stream = await capnp.AsyncIoStream.create_unix_connection(served.path)
            client = capnp.TwoPartyClient(stream)
            with pytest.raises(capnp.KjException, match="Gate does not implement") as caught:
                await client.bootstrap().cast_as(stranger.Other).f()
            assert caught.value.type == "UNIMPLEMENTED"
            entered = client.bootstrap().cast_as(newer.Gate).login(token="").session
            with pytest.raises(capnp.KjException, match=f"no method {number}") as caught:
                await entered.later()
            assert caught.value.type == "UNIMPLEMENTED"
            await entered.hello(session=5, clientId="x")
            client.close()

    run(main())


def test_calls_are_pipelined_on_a_login_that_was_not_answered(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, capnp.kj_loop():
            stream = await capnp.AsyncIoStream.create_unix_connection(served.path)
            client = capnp.TwoPartyClient(stream)
            session = client.bootstrap().cast_as(SCHEMA.Gate).login(token="").session
            hello = session.hello(session=9, clientId="")
            batch = {"table": served.table, "keys": pack([1]), "gradients": bytes(4 * DIM)}
            pushes = [
                session.applyGradients(push={"number": n + 1}, tables=[batch]) for n in range(20)
            ]
            assert (await hello).server.version == "test"
            assert [(await push).duplicate for push in pushes] == [False] * 20
            client.close()

    run(main())


def test_capabilities_are_counted(run: Any, tmp_path: Path) -> None:
    """A stock client drops and takes capabilities at will; the connection goes on."""

    async def main() -> None:
        async with serving(tmp_path) as served, capnp.kj_loop():
            stream = await capnp.AsyncIoStream.create_unix_connection(served.path)
            client = capnp.TwoPartyClient(stream)
            for session_number in range(1, 30):
                gate = client.bootstrap().cast_as(SCHEMA.Gate)
                session = (await gate.login(token="")).session
                await session.hello(session=session_number, clientId="")
                del gate, session
            client.close()

    run(main())


def test_large_replies_and_many_calls_in_flight(run: Any, tmp_path: Path) -> None:
    keys = list(range(40_000))

    async def main() -> None:
        async with serving(tmp_path) as served, stock(served) as session:
            await read_or_insert(session, served.table, keys)
            replies = await asyncio.gather(
                *[session.lookup(served.table, keys[: 1000 * n], DIM) for n in range(1, 41)]
            )
            for n, rows in enumerate(replies, 1):
                assert rows.shape == (1000 * n, DIM)
                assert (rows == 0.5).all()
            assert served.counts.observed.count(("lookup", "ok")) == 40

    run(main())


def test_a_call_sees_all_earlier_pushes_and_none_sent_later(run: Any, tmp_path: Path) -> None:
    """Reads and pushes sent in one flight, some large enough to run on threads."""

    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer:
            await peer.start()
            keys = np.arange(3000)
            expected: dict[int, float | bool] = {}
            for number in range(1, 21):
                expected[peer.push(served.table, number, keys)] = False
                for size in (10, 3000):
                    expected[peer.lookup(served.table, keys[:size])] = 0.5 - number
            for answer in await peer.answers(len(expected)):
                if answer.kind == "duplicate":
                    assert answer.duplicate is expected[answer.question]
                else:
                    rows = np.frombuffer(answer.rows[0][0], np.float32)
                    assert (rows == expected[answer.question]).all()

    run(main())


def test_a_cancelled_read_is_skipped_and_a_cancelled_push_is_applied(
    run: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as peer:
            await peer.start()
            gate = asyncio.Event()

            async def slow(*_: Any) -> None:
                await gate.wait()

            served.service.handlers["setLearningRate"] = slow
            peer.cold("setLearningRate", table=served.table, learningRate=1.0)
            read = peer.lookup(served.table, [1])
            push = peer.push(served.table, 1, [1])
            peer.machine.forget(read)
            peer.machine.forget(push)
            peer.writer.write(peer.machine.pending_bytes())
            last = peer.lookup(served.table, [1])
            await asyncio.sleep(0.1)
            gate.set()
            first, second = await peer.answers(2)
            assert (first.kind, second.question) == ("results", last)
            assert np.frombuffer(second.rows[0][0], np.float32).tolist() == [-0.5] * DIM
            observed = [verb for verb, _ in served.counts.observed]
            assert observed == ["hello", "setLearningRate", "applyGradients", "lookup"]
            # From its last byte on: also while it stood behind other calls.
            assert served.counts.waited_s[-1] >= 0.1 > served.counts.waited_s[1]

    run(main())


TABLE = 4
ROWS = np.arange(6, dtype=np.float32)
COUNTS = np.arange(3, dtype=np.uint32)


class StockServer(SCHEMA.Session.Server):  # type: ignore[misc]
    """What pycapnp makes of our calls is checked here."""

    async def hello(self, session: int, clientId: str, **_: Any) -> Any:  # noqa: N803
        assert (session, clientId) == (11, "me")
        return {"version": "stock", "keysLimit": 9}

    async def lookup(self, tables: Any, wantFound: bool, **_: Any) -> Any:  # noqa: N803
        assert wantFound
        assert [(t.table, bytes(t.keys)) for t in tables] == [(TABLE, pack(KEYS)), (5, b"")]
        return [{"rows": ROWS.tobytes(), "found": b"\1\0\1"}, {}]

    async def lookupOrInsert(self, tables: Any, **_: Any) -> Any:  # noqa: N802
        sent = [(t.table, bytes(t.keys), bytes(t.counts)) for t in tables]
        assert sent == [(TABLE, pack([1, 2, 3]), COUNTS.tobytes()), (5, pack([7]), b"")]
        return [{"rows": ROWS[:3].tobytes()}, {"rows": ROWS[:1].tobytes()}]

    async def applyGradients(self, push: Any, tables: Any, **_: Any) -> Any:  # noqa: N802
        assert push.to_dict() == {"number": 3, "hasStep": True, "step": -2, "total": 0}
        assert bytes(tables[0].gradients) == ROWS[:3].tobytes()
        return True

    async def tables(self, **_: Any) -> Any:
        return ["x" * 9000, "y"]

    async def table(self, name: str, **_: Any) -> Any:
        raise RuntimeError(f"TableNotFoundError: no table {name}")


class StockGate(SCHEMA.Gate.Server):  # type: ignore[misc]
    """Lets us in."""

    async def login(self, token: str, **_: Any) -> Any:
        assert token == "sesame"  # noqa: S105
        return StockServer()


def test_our_client_against_a_stock_server(tmp_path: Path) -> None:
    """Its calls decode with pycapnp, and what pycapnp answers decodes here."""
    path = str(tmp_path / "stock.sock")

    async def serve(stream: Any) -> None:
        await capnp.TwoPartyServer(stream, bootstrap=StockGate()).on_disconnect()

    async def main() -> None:
        async with capnp.kj_loop():
            server = await capnp.AsyncIoStream.create_unix_server(serve, path)
            peer = Raw(*await asyncio.open_unix_connection(path))
            asked, answers = await talk(peer)
            check_answers({answer.question: answer for answer in answers}, asked)
            peer.close()
            server.close()

    # On asyncio only: pycapnp's own server dies on uvloop. The bytes are the same.
    with asyncio.Runner() as loop:
        loop.run(main())


async def talk(peer: Raw) -> tuple[list[int], list[_core.Answer]]:
    """The first two calls are sent before the login is answered; the others after."""
    machine = peer.machine
    hello, data = machine.start(11, "me", "sesame")
    peer.writer.write(data)
    keys = np.array(KEYS, np.uint64)
    asked = [hello, peer.send(machine.lookup([(TABLE, keys), (5, keys[:0])], True))]
    answers = await peer.answers(2)
    three, seven = np.array([1, 2, 3], np.uint64), np.array([7], np.uint64)
    asked.append(peer.send(machine.lookup_or_insert([(TABLE, three, COUNTS), (5, seven, None)])))
    gradients = ROWS[:3].reshape(1, 3)
    asked.append(peer.send(machine.apply_gradients(3, -2, [(TABLE, seven, gradients)])))
    asked += [peer.cold("tables"), peer.cold("table", name="t")]
    assert machine.in_flight == 4
    answers += await peer.answers(4)
    assert machine.in_flight == 0
    return asked, answers


def check_answers(answers: dict[int, _core.Answer], asked: list[int]) -> None:
    greeting, found, inserted, pushed, names, missing = [answers[q] for q in asked]
    with schemas.read_results("hello", greeting.results) as results:
        assert (results.server.version, results.server.keysLimit) == ("stock", 9)
    (first, flags), (second, none) = found.rows
    assert np.frombuffer(first, np.float32).tolist() == ROWS.tolist()
    assert (bytes(flags), len(second), none) == (b"\1\0\1", 0, None)
    assert [len(rows) for rows, _ in inserted.rows] == [12, 4]
    assert pushed.duplicate
    with schemas.read_results("tables", names.results) as results:
        assert list(results.names) == ["x" * 9000, "y"]
    # pycapnp sends a whole traceback, which is no text of ours.
    assert missing.exception is not None
    assert missing.exception[:2] == ("failed", "")
    assert "no table t" in missing.exception[2]


def test_a_call_is_run_or_sent_as_it_says(tmp_path: Path) -> None:
    served = Served(tmp_path, limits(), 64 << 20)
    server = _core.Connection(served.store, frame_limit=1 << 24, keys_limit=1 << 17)
    client = _core.ClientConnection()
    (login,) = feed(server, client.start(1, "")[1])
    server.accept(login.question)
    ours, peer = socket.socketpair()
    with ours, peer:
        outlet = _core.Outlet(ours.fileno())
        for count, is_streamed in ((10, False), (1 << 16, True)):
            _, buffers = client.lookup([(served.table, np.arange(count, dtype=np.uint64))], False)
            (call,) = [event for buffer in buffers for event in feed(server, bytes(buffer))]
            assert (call.is_streamed, call.unsent_bytes > 0) == (is_streamed, is_streamed)
            with pytest.raises(RuntimeError, match=r"run\(\) it once"):
                call.run() if is_streamed else call.send(outlet)
    peer.close()
    # Nobody reads any more: the failure is raised, and nothing is left to do.
    ours.close()
    with pytest.raises(OSError, match="Broken pipe"):
        call.send(outlet)
    assert call.unsent_bytes == 0


def test_rows_are_the_callers_own_and_keep_the_frame_alive(tmp_path: Path) -> None:
    server = _core.Connection(
        Served(tmp_path, limits(), 64 << 20).store, frame_limit=1 << 20, keys_limit=1 << 16
    )
    client = _core.ClientConnection()
    (login,) = feed(server, client.start(1, "")[1])
    assert login.token == ""
    (hello,) = server.accept(login.question)
    assert hello.verb == "hello"
    assert feed(client, bytes(server.outgoing())) == []
    arrays = []
    for _ in range(50):
        keys = np.arange(2000, dtype=np.uint64)
        question, buffers = client.lookup_or_insert([(1, keys, None)])
        (call,) = [event for buffer in buffers for event in feed(server, bytes(buffer))]
        assert call.reply_bytes >= 2000 * DIM * 4
        assert call.cost == call.frame_bytes + call.reply_bytes
        (answer,) = feed(client, bytes(server.answer(question) or call.run()))
        rows = np.frombuffer(answer.rows[0][0], np.float32)
        assert (rows == 0.5).all()
        rows += len(arrays)
        arrays.append(rows)
    del answer, call
    assert all((rows == 0.5 + i).all() for i, rows in enumerate(arrays))


def test_the_limit_of_connections_is_told(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, connections=2) as served:
            async with raw(served) as one, raw(served) as two:
                await one.start()
                await two.start()
                async with raw(served) as three:
                    assert "OverloadedError" in await three.ending()
                assert served.counts.rejected == ["connections"]
            await served.idle()
            async with raw(served) as again:
                await again.start()

    run(main())


def test_drain_finishes_calls_in_flight_and_closes(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as served, raw(served) as busy, raw(served) as idle:
            await busy.start()
            await idle.start()
            gate = asyncio.Event()

            async def slow(*_: Any) -> None:
                await gate.wait()

            served.service.handlers["flush"] = slow
            question = busy.cold("flush")
            await asyncio.sleep(0.05)
            drain = asyncio.create_task(served.listener.drain(10))
            await idle.ending()
            gate.set()
            assert (await busy.answer()).question == question
            await busy.ending()
            await drain
            with pytest.raises(OSError, match=r"refused|No such file"):
                await asyncio.open_unix_connection(served.path)

    run(main())


def test_connections_that_stall_are_cut(run: Any, tmp_path: Path) -> None:
    """Silent before login, inside a frame, with answers unread, idle: each for its own reason."""
    times = {"login_s": 0.2, "frame_s": 0.2, "unread_s": 0.2, "idle_s": 0.2}

    async def main() -> None:
        async with serving(tmp_path, **times) as served:
            rejected = served.counts.rejected
            async with raw(served) as silent:
                await silent.ending()
            assert rejected == ["login"]
            async with raw(served) as idle:
                await idle.start()
                await idle.ending()
            assert rejected[1:] == ["idle"]
            async with raw(served) as half:
                await half.start()
                half.writer.write(struct.pack("<II", 0, 100))
                await half.ending()
            assert rejected[2:] == ["frame"]
            async with raw(served) as deaf:
                await deaf.start()
                deaf.writer.transport.pause_reading()
                for _ in range(10):
                    deaf.lookup(served.table, range(50_000))
                await served.idle()
            assert rejected[3:] == ["unread"]

    run(main())
