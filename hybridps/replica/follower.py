"""A replica at work: a thread with an event loop of its own, beside that of the server, which takes
what changed from the servers that are followed and puts it into the store. So neither a large page
nor a slow device on this side makes a read late.

Two tasks with a short queue between them: one asks, one applies. Whatever fails is tried again,
for ever: while the followed are away, or the disk is full, the replica serves what it has, and its
staleness grows.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from hybridps import _core
from hybridps.client import aio
from hybridps.client.streams import StreamTransport
from hybridps.client.urls import Address
from hybridps.errors import (
    ConfigError,
    CursorError,
    DeadlineError,
    HybridPSError,
    TableNotFoundError,
    UnavailableError,
)
from hybridps.placement import CELLS, cells, cells_of, shards
from hybridps.replica import state
from hybridps.replica.copies import Copies
from hybridps.replica.feed import Feed, News, PageNews, TableNews
from hybridps.replica.state import State
from hybridps.security.credentials import Credentials
from hybridps.types import TableSpec
from hybridps.verbs.calls import NEVER_MS, Call, Keys, Standing
from hybridps.verbs.face import Run
from hybridps.verbs.open_table import Opened, OpenTable
from hybridps.verbs.position import Position, Shard

# One call to the followed; a read that is passed on waits for less, and where they are known to be
# away only for a sign that they are back.
CALL_S: Final = 10.0
PASSED_ON_S: Final = 5.0
AWAY_S: Final = 0.25
# Between two looks where nothing changed, and two attempts where something failed.
PAUSE_S: Final = 0.05
RETRY_S: Final = 0.5
# The position is written so often, behind a flush; specs are looked at.
SAVE_S: Final = 5.0
TEND_S: Final = 1.0
# Pages between who asks and who applies.
QUEUED: Final = 2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Followed:
    """Whom a replica follows."""

    url: str
    addresses: Sequence[Address]
    tables: tuple[str, ...] | None
    credentials: Credentials


@dataclass(frozen=True, slots=True)
class _Moment:
    """All that had changed by then was told, in the news before."""

    as_of: float
    position: Position


class Follower:
    """See the module. `note(event, **fields)` tells the log."""

    def __init__(
        self, store: _core.Store, data: Path, followed: Followed, note: Callable[..., None]
    ) -> None:
        known = _known(data, store)
        self.followed = followed
        self._store = store
        self._data = data
        self._note = note
        self._copies = Copies(store)
        self._specs = dict(known.specs)
        self._as_of = known.as_of
        self._rows = 0
        self._saved = known
        self._applied = self._resume(known)
        # By local id: tables whose rows are not all here.
        self._arriving: dict[int, str] = {}
        self._note_arriving()
        self._is_away = False
        self._has_met = threading.Event()
        if self._applied.shards:
            self._has_met.set()
        self._loop = asyncio.new_event_loop()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="hybridps-follow")
        self._thread = threading.Thread(target=self._main, name="hybridps-follower", daemon=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._ps: aio.ParameterServer | None = None
        self._is_stopping = False

    # Of the server, from its own threads.

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def wait_until_met(self, seconds: float) -> bool:
        """Waits until it is known which tables there are; False if it is not by then."""
        return self._has_met.wait(seconds)

    def stop(self) -> None:
        """Ends, with the position on the device. A second call does nothing."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # It has just ended.
                self._loop.call_soon_threadsafe(self._cancel)
            self._thread.join()

    @property
    def standing(self) -> Standing:
        """Role, staleness and rows, for whoever asks."""
        behind = self._as_of
        staleness_ms = NEVER_MS
        if behind is not None:
            staleness_ms = min(max(0, int(1000 * (time.time() - behind))), NEVER_MS)
        return Standing(role=1, staleness_ms=staleness_ms, followed_rows=self._rows)

    def check_met(self) -> None:
        """Raises UnavailableError while it is not known which tables there are."""
        if not self._has_met.is_set():
            raise UnavailableError(
                f"this replica has not met {self.followed.url} yet; start that one, or wait"
            )

    def opened(self, name: str) -> Opened | None:
        """A table that is followed, by its spec over there; None: there is none."""
        table, spec = self._copies.ids.get(name), self._specs.get(name)
        return None if table is None or spec is None else Opened(table, spec)

    def arriving(self, table: int) -> str | None:
        """The name of a table whose rows are not all here."""
        return self._arriving.get(table)

    @property
    def has_arriving(self) -> bool:
        """Whether there is one."""
        return bool(self._arriving)

    async def bring(self, asked: Sequence[tuple[int, Keys]]) -> None:
        """Brings the rows of these keys, by table, that have not arrived.

        Raises: UnavailableError where the followed are away.
        """
        await self.ask(lambda ps: self._bring(ps, asked))

    async def ask(self, verb: Callable[[aio.ParameterServer], Awaitable[T]]) -> T:
        """What the followed answer. Raises: UnavailableError where they are away."""

        async def asking() -> T:
            if self._ps is None:
                raise self._unasked("it was not met yet")
            try:
                return await verb(self._ps)
            except (UnavailableError, DeadlineError, TableNotFoundError) as error:
                raise self._unasked(error) from None

        work = asking()
        try:
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise self._unasked("this replica is stopping") from None
        return await asyncio.wrap_future(future)

    async def ask_each(self, table: int, call: Callable[[int], Call[T]]) -> list[T] | None:
        """What every server that is followed says of a table that is arriving, by its id there;
        None of any other.
        """
        name = self._arriving.get(table)
        if name is None:
            return None
        ids = [shard.tables[name].id for shard in self._applied.shards]
        addressed = [(shard, call(there)) for shard, there in enumerate(ids)]

        async def perform(_: aio.ParameterServer) -> list[T]:
            return await self._driver.transport.perform(addressed, self._patience_s)

        return await self.ask(perform)

    @property
    def _patience_s(self) -> float:
        return AWAY_S if self._is_away else PASSED_ON_S

    def _unasked(self, why: object) -> UnavailableError:
        return UnavailableError(
            f"this has not arrived at the replica yet, and {self.followed.url} cannot be asked:"
            f" {why}"
        )

    # Inside: the follower's own thread.

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._is_stopping:
            try:
                self._loop.run_until_complete(self._live())
            except asyncio.CancelledError:
                break
            except Exception as error:  # noqa: BLE001 - whatever it was, the rows here stay
                self._note("following has failed, and begins again", error=repr(error))
                time.sleep(RETRY_S)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._worker.shutdown()
        self._loop.close()

    def _cancel(self) -> None:
        self._is_stopping = True
        for task in self._tasks:
            task.cancel()

    async def _live(self) -> None:
        followed = self.followed
        transport = StreamTransport(followed.addresses, None, CALL_S, followed.credentials)
        self._ps = aio.ParameterServer(transport, followed.url)
        self._driver = aio.Driver(transport, followed.url)
        self._lock = asyncio.Lock()
        self._queue: asyncio.Queue[News | _Moment] = asyncio.Queue(QUEUED)
        works = (self._pull(), self._apply_all(), self._save_often(), self._tend())
        self._tasks = [self._loop.create_task(work) for work in works]
        try:
            if not self._is_stopping:
                await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._ps = None
            await transport.close()
            await self._in_thread(self._save)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await self._loop.run_in_executor(self._worker, work, *args)

    def _resume(self, known: State) -> Position:
        """Where it had come to. What is here of tables that it knows nothing of goes."""
        fresh = Position(self.followed.tables, ())
        try:
            position = fresh if known.position is None else Position.from_text(known.position)
        except CursorError:
            position = fresh
        is_same = len(position.shards) in (0, len(self.followed.addresses))
        if position.names != self.followed.tables or not is_same:
            position = fresh
        parts = len(position.shards)
        begun = {
            name
            for n, shard in enumerate(position.shards)
            for name, table in shard.tables.items()
            if table.since is not None or table.at > cells_of(n, parts)[0]
        }
        for name in [name for name in self._copies.ids if name not in begun]:
            self._copies.drop(name)
        if position is fresh:
            self._as_of = None
        # A table that is known and not here is met as a new one.
        ids = self._copies.ids
        here = (
            Shard(shard.store, {name: t for name, t in shard.tables.items() if name in ids})
            for shard in position.shards
        )
        return Position(position.names, tuple(here))

    async def _pull(self) -> None:
        feed = Feed(self._driver.catalog, None, self.followed.tables)
        if self._applied.shards:
            feed.resume(self._applied)
        while True:
            try:
                news = await self._driver.finish(Run(feed.step(), CALL_S))
            except HybridPSError as error:
                self._note_away(error)
                await asyncio.sleep(RETRY_S)
                continue
            self._note_back()
            if news is not None:
                await self._queue.put(news)
            if feed.is_through:
                await self._queue.put(_Moment(feed.as_of, feed.position))
            if feed.is_idle:
                await asyncio.sleep(PAUSE_S)

    async def _apply_all(self) -> None:
        while True:
            news = await self._queue.get()
            if isinstance(news, _Moment):
                self._as_of = news.as_of
                self._applied = news.position
                self._note_arriving()
                self._has_met.set()
                continue
            while True:
                try:
                    async with self._lock:
                        await self._apply(news)
                    break
                except HybridPSError as error:
                    self._note("what changed could not be applied", error=str(error))
                    await asyncio.sleep(RETRY_S)

    async def _apply(self, news: TableNews | PageNews) -> None:
        if isinstance(news, PageNews):
            self._rows += await self._in_thread(self._copies.apply, news)
            self._applied = news.position
            self._note_arriving()
            return
        spec = await self._spec_of(news.table) if news.is_there else None
        if spec is None:
            self._specs.pop(news.table, None)
        else:
            self._specs[news.table] = spec
        self._applied = news.position
        # Before anything of the table goes: who starts here again must not take it for whole.
        await self._in_thread(self._save)
        if spec is None:
            await self._in_thread(self._copies.drop, news.table)
        else:
            await self._in_thread(self._copies.make, TableSpec.from_json(spec))
        self._note_arriving()
        self._has_met.set()

    async def _spec_of(self, name: str) -> str | None:
        """As the followed store it; None if it is gone by now."""
        try:
            (opened,) = await self._driver.transport.perform([(0, OpenTable(name))], CALL_S)
        except TableNotFoundError:
            return None
        stored: str = opened.stored
        return stored

    def _note_arriving(self) -> None:
        names = {n for s in self._applied.shards for n, t in s.tables.items() if t.since is None}
        ids = self._copies.ids
        self._arriving = {ids[name]: name for name in names if name in ids}

    async def _bring(self, ps: aio.ParameterServer, asked: Sequence[tuple[int, Keys]]) -> None:
        for table, keys in asked:
            name = self._arriving.get(table)
            if name is None:
                continue
            lacking = await asyncio.to_thread(self._copies.absent, table, keys)
            lacking = lacking[~self._has_covered(name, lacking)]
            if not len(lacking):
                continue
            told = await ps.lookup({name: lacking}, return_found=True, timeout=self._patience_s)
            rows, found = told[name]
            lacking, rows = lacking[found], rows[found]
            async with self._lock:
                # A page that has come meanwhile has newer rows.
                late = self._has_covered(name, lacking)
                if self._arriving.get(table) == name:
                    await self._in_thread(self._copies.put, table, lacking[~late], rows[~late])

    def _has_covered(self, name: str, keys: Keys) -> NDArray[np.bool_]:
        """bool[n]: whether all that the followed had of a key is here."""
        progress = [shard.tables.get(name) for shard in self._applied.shards]
        up_to = [0 if p is None else p.at if p.since is None else CELLS for p in progress]
        return cells(keys) < np.array(up_to, np.uint64)[shards(keys, len(up_to))]

    async def _save_often(self) -> None:
        while True:
            await asyncio.sleep(SAVE_S)
            try:
                await self._in_thread(self._save)
            except HybridPSError as error:
                self._note("the position could not be written", error=str(error))

    def _save(self) -> None:
        """The position, once the rows that it speaks of are on the device."""
        now = State(self._applied.to_text(), self._as_of, dict(self._specs))
        if now.position != self._saved.position:
            self._store.flush()
        if now != self._saved:
            state.save(self._data, now)
            self._saved = now

    async def _tend(self) -> None:
        """Specs that were altered."""
        while True:
            await asyncio.sleep(TEND_S)
            try:
                for name in list(self._specs):
                    spec = await self._spec_of(name)
                    if spec is not None and name in self._specs:
                        self._specs[name] = spec
            except HybridPSError:
                # Who pulls tells of it.
                continue

    def _note_away(self, error: HybridPSError) -> None:
        if not self._is_away:
            self._is_away = True
            self._note("the followed cannot be asked", url=self.followed.url, error=str(error))

    def _note_back(self) -> None:
        if self._is_away:
            self._is_away = False
            self._note("the followed are back", url=self.followed.url)


def _known(data: Path, store: _core.Store) -> State:
    """What the directory says. Raises: ConfigError for that of another kind of server."""
    known = state.load(data)
    if known is not None:
        return known
    if store.tables():
        raise ConfigError(
            f"{data} has tables that no replica has made; give --data an empty directory, or leave"
            " --follow out"
        )
    # From here on it is a replica's, whatever becomes of it.
    state.save(data, State())
    return State()
