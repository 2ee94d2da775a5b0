"""Every way to reach tables, behind one face: the blocking client's.

The asyncio client is driven from a thread of its own, so that one suite of tests runs over all.
"""

import asyncio
import importlib.util
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest

import hybridps as hps
from support.server import ServerProcess

LOCAL = ("local", "local-aio")
REMOTE = ("tcp", "unix", "shards", "tcp-aio", "unix-aio", "shards-aio")
HAS_SERVER = importlib.util.find_spec("hybridps.rpc") is not None
needs_server = pytest.mark.skipif(not HAS_SERVER, reason="the server is not part of this build")
# Tables of all tests stay until the run ends.
DRAM = "128MiB"
_numbers = itertools.count(1)


def kinds() -> list[Any]:
    """Parameters of a fixture that goes through all transports."""
    return [*LOCAL, *(pytest.param(kind, marks=needs_server) for kind in REMOTE)]


def fresh_name() -> str:
    """A table name that no test had: servers are shared by all tests."""
    return f"table-{next(_numbers)}"


class Servers:
    """Servers of a test run, started when first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: dict[str, list[ServerProcess]] = {}

    def url(self, kind: str) -> str:
        """URL of the servers of a transport."""
        kind = kind.removesuffix("-aio")
        if kind not in self._started:
            self._started[kind] = list(self._start(kind))
        return urls_of(self._started[kind])

    def close(self) -> None:
        """Ends all servers."""
        for server in itertools.chain(*self._started.values()):
            server.close()

    def _start(self, kind: str) -> Iterator[ServerProcess]:
        if kind == "shards":
            for shard in range(2):
                where = self._directory / f"shard{shard}"
                yield ServerProcess(where, "--shard", f"{shard}/2", dram=DRAM)
        elif kind == "unix":
            path = str(self._directory / "hps.sock")
            yield ServerProcess(
                self._directory / "unix", "--unix", path, "--listen", "off", dram=DRAM
            )
        else:
            yield ServerProcess(self._directory / "tcp", dram=DRAM)


def urls_of(servers: list[ServerProcess]) -> str:
    """One URL of several shards."""
    scheme = servers[0].url.partition("://")[0]
    return f"{scheme}://" + ",".join(server.url.partition("://")[2] for server in servers)


def connect(kind: str, url: str, **settings: Any) -> Any:
    """A client of the transport `kind`."""
    if kind.endswith("-aio"):
        return AsyncClient(url, **settings)
    return hps.connect(url, **settings)


class AsyncClient:
    """`hybridps.aio` with the face of the blocking client."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.ps = self.run(self._connect(url, settings))
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getattr__(self, verb: str) -> Any:
        return lambda *args, **kwargs: self.run(getattr(self.ps, verb)(*args, **kwargs))

    def run(self, coroutine: Any) -> Any:
        """The result of a coroutine on the client's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    def create_table(self, spec: hps.TableSpec) -> "AsyncTable":
        """The handle, wrapped."""
        return AsyncTable(self, self.run(self.ps.create_table(spec)))

    def table(self, name: str) -> "AsyncTable":
        """The handle, wrapped; an absent table raises at its first verb, which is now."""
        table = AsyncTable(self, self.ps.table(name))
        table.size()
        return table

    def scrub(self, *args: Any, **kwargs: Any) -> list[Any]:
        """All steps."""
        return self.run(_collect(self.ps.scrub(*args, **kwargs)))

    def changes(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """One after the other, as they come."""
        changes = self.ps.changes(*args, **kwargs)
        try:
            while (change := self.run(_next(changes))) is not None:
                yield change
        finally:
            self.run(changes.aclose())

    def close(self) -> None:
        """Closes the client and its loop."""
        if self._thread.is_alive():
            self.run(self.ps.close())
            self._end()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _connect(self, url: str, settings: dict[str, Any]) -> Any:
        return await hps.aio.connect(url, **settings)


class AsyncTable:
    """`hybridps.aio.Table` with the face of `hybridps.Table`."""

    def __init__(self, client: AsyncClient, table: Any) -> None:
        self._client = client
        self._table = table

    def __getattr__(self, verb: str) -> Any:
        return lambda *args, **kwargs: self._client.run(getattr(self._table, verb)(*args, **kwargs))

    def __len__(self) -> int:
        return self.size()

    @property
    def name(self) -> str:
        """The table's name."""
        return self._table.name

    @property
    def spec(self) -> hps.TableSpec:
        """The stored spec."""
        return self._client.run(_await(self._table.spec))

    def keys(self) -> list[Any]:
        """All pages."""
        return self._client.run(_collect(self._table.keys()))


async def _await(awaitable: Any) -> Any:
    return await awaitable


async def _next(items: Any) -> Any:
    return await anext(items, None)


async def _collect(pages: Any) -> list[Any]:
    return [page async for page in pages]
