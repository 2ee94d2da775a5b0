"""A listener on a unix socket in this process, with a service that answers from plain values, and
peers that speak to it: stock pycapnp, raw bytes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hybridps import _core
from hybridps.rpc import schemas
from hybridps.rpc.listener import Limits, Listener
from hybridps.verbs.kinds import Lane

DIM = 4
SPEC = f"""{{"name": "item", "dim": {DIM}, "optimizer": {{"kind": "sgd"}}, "learning_rate": 1.0,
"initializer": {{"kind": "constant", "value": 0.5}}, "seed": 7, "dtype": "float32", "dram": null,
"nvme": null}}"""


class Threads:
    """Work on two threads."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2)

    def run(self, _lane: Lane, function: Callable[[], Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    def close(self) -> None:
        self._pool.shutdown()


class Counts:
    """Metrics as plain lists."""

    def __init__(self) -> None:
        self.observed: list[tuple[str, str]] = []
        self.waited_s: list[float] = []
        self.rejected: list[str] = []

    def observe(self, method: str, code: str, seconds: float, waited_s: float) -> None:
        assert 0 <= waited_s <= seconds
        self.observed.append((method, code))
        self.waited_s.append(waited_s)

    def reject(self, limit: str) -> None:
        self.rejected.append(limit)


class FakeService:
    """Answers `hello` as a server does, and any other cold verb by what `handlers` has for it:
    `handler(caller, params, results)`, which may be a coroutine function."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Any, Any, Any], Any]] = {"hello": self._hello}
        self.calls: list[str] = []

    async def call(self, caller: Any, verb: str, params: Any, begin: Callable[[], None]) -> bytes:
        self.calls.append(verb)
        begin()
        results = schemas.new_results(verb)
        with schemas.read_params(verb, params) as reader:
            done = self.handlers[verb](caller, reader, results)
            if asyncio.iscoroutine(done):
                await done
        return results.to_bytes()

    def _hello(self, caller: Any, params: Any, results: Any) -> None:
        caller.session = params.session
        results.server.version = "test"
        results.server.lastPush = 0
        results.server.frameLimit = 1 << 20


class Served:
    """What a test sees of the server."""

    def __init__(self, folder: Path, limits: Limits, dram: int) -> None:
        self.path = str(folder / "rpc.sock")
        self.store = _core.Store(
            str(folder / "data"), dram=dram, nvme=256 << 20, durability="none", threads=1
        )
        self.table = self.store.create_table(SPEC)[0]
        self.service = FakeService()
        self.counts = Counts()
        self.threads = Threads()
        self.listener = Listener(self.store, self.service, self.threads, self.counts, limits)

    async def settled(self) -> None:
        """Returns when nothing is held for calls or answers; connections may be open."""
        async with asyncio.timeout(60):
            while self.listener.inflight_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    async def idle(self) -> None:
        """Returns when no connection is open and nothing is held."""
        async with asyncio.timeout(10):
            while self.listener.connections or self.listener.inflight_bytes:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def limits(**changes: Any) -> Limits:
    """Limits of a test: roomy, unless it says otherwise."""
    roomy = {"frame_bytes": 16 << 20, "keys": 1 << 20, "connections": 500}
    return Limits(**{**roomy, "inflight_bytes": 64 << 20, **changes})


@asynccontextmanager
async def serving(folder: Path, *, dram: int = 64 << 20, **changes: Any) -> AsyncIterator[Served]:
    """A server on `folder`/rpc.sock."""
    served = Served(folder, limits(**changes), dram)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(served.path)
    await served.listener.listen(bound)
    try:
        yield served
    finally:
        await served.listener.drain(5)
        served.threads.close()
        served.store.close()
        bound.close()


class Raw:
    """A connection that sends what it is told to; frames are read back whole."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.machine = _core.ClientConnection()

    async def start(self, session: int = 5) -> None:
        """Logs in and says hello."""
        question, data = self.machine.start(session, "")
        self.writer.write(data)
        answer = await self.answer()
        assert (answer.question, answer.kind) == (question, "results")

    def send(self, call: tuple[int, list[Any]]) -> int:
        """Sends a call of `machine`; returns its question."""
        question, buffers = call
        for buffer in buffers:
            self.writer.write(bytes(buffer))
        return question

    def lookup(self, table: int, keys: Any, want_found: bool = False) -> int:
        keys = np.asarray(keys, np.uint64)
        return self.send(self.machine.lookup([(table, keys)], want_found))

    def push(self, table: int, number: int, keys: Any, value: float = 1.0) -> int:
        keys = np.asarray(keys, np.uint64)
        gradients = np.full((len(keys), DIM), value, np.float32)
        return self.send(self.machine.apply_gradients(number, None, [(table, keys, gradients)]))

    def cold(self, verb: str, **fields: Any) -> int:
        params = schemas.new_params(verb)
        for name, value in fields.items():
            setattr(params, name, value)
        return self.send(self.machine.call(verb, params.to_bytes()))

    async def answer(self) -> _core.Answer:
        """The next answer."""
        return (await self.answers(1))[0]

    async def answers(self, count: int) -> list[_core.Answer]:
        """The next answers, in the order in which they come."""
        answers: list[_core.Answer] = []
        async with asyncio.timeout(60):
            while len(answers) < count:
                data = await self.reader.read(1 << 18)
                assert data, "the server closed the connection"
                answers += feed(self.machine, data)
                assert self.machine.closed is None, self.machine.closed
        assert len(answers) == count
        return answers

    async def ending(self) -> str:
        """Reads until the server closes; the reason it gave, if any."""
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionError):
                while data := await self.reader.read(1 << 18):
                    feed(self.machine, data)
        return self.machine.closed or ""

    def close(self) -> None:
        self.writer.close()


def feed(machine: Any, data: bytes) -> list[Any]:
    """Hands bytes to a connection in the pieces it asks for."""
    events: list[Any] = []
    rest = memoryview(data)
    while rest:
        with memoryview(machine.get_buffer(-1)) as room:
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
        if not count:
            break  # What came was refused; the machine says why.
        events += machine.received(count)
        rest = rest[count:]
    return events


@asynccontextmanager
async def raw(served: Served) -> AsyncIterator[Raw]:
    """A raw connection."""
    reader, writer = await asyncio.open_unix_connection(served.path, limit=1 << 18)
    peer = Raw(reader, writer)
    try:
        yield peer
    finally:
        peer.close()
