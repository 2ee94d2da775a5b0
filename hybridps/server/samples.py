"""Samples of all counters for whoever looks, taken off the loop.

A look never makes a call late, and is never late itself: the engine may have to wait for a stripe
that a slow device holds up, and is not waited for longer than a moment; then the last sample is
shown once more.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from hybridps import _core
from hybridps.server.exposition import Snapshot, exposition
from hybridps.server.logs import Logger
from hybridps.server.metrics import Counted, Metrics
from hybridps.server.workers import Workers
from hybridps.verbs.calls import PRIMARY, Standing
from hybridps.verbs.kinds import Lane

# A sample is shown again for so many times the processor's time that it took: however many look,
# and however many tables there are, they take no more than a tenth of a core.
FRESH_FACTOR = 10.0
FRESH_MAX_S = 1.0
PATIENCE_S = 0.25

log = Logger("hybridps.server")


@dataclass(frozen=True)
class Sample:
    """All counters at one moment of the monotonic clock, and the text of a scrape of then."""

    at: float
    snapshot: Snapshot
    requests: dict[str, int]
    exposition: bytes
    fresh_s: float
    # Calls that read or change rows, by the bound of `SECONDS_BUCKETS` they were answered within;
    # last, those above all bounds.
    latencies: tuple[int, ...] = ()


class Sampler:
    """Takes the samples of one server. The store and the listener are None until there are some."""

    def __init__(
        self, metrics: Metrics, workers: Workers, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._counted: Counted | None = None
        self._store: _core.Store | None = None
        # What the server is to others; told with the store's counters.
        self.standing: Callable[[], Standing] = lambda: PRIMARY
        self._metrics = metrics
        self._workers = workers
        self._clock = clock
        self._latest: Sample | None = None
        self._taking: asyncio.Task[None] | None = None

    async def use(self, store: _core.Store | None) -> None:
        """Counts this store from now on; returns when a first sample of it is there."""
        if self._taking is not None:
            await asyncio.wait({self._taking})
        self._store, self._latest = store, None
        if store is not None:
            await self._take()

    @property
    def counted(self) -> Counted | None:
        """The listener, once there is one."""
        return self._counted

    def count(self, counted: Counted) -> None:
        """Counts the connections of this listener too; a sample from before is fresh no more."""
        self._counted = counted
        if self._latest is not None:
            self._latest = replace(self._latest, fresh_s=0.0)

    async def latest(self) -> Sample:
        """A fresh sample, or the last one if the engine does not answer in time."""
        if self._latest is None or self._clock() - self._latest.at >= self._latest.fresh_s:
            if self._taking is None:
                self._taking = asyncio.create_task(self._take())
                self._taking.add_done_callback(self._taken)
            await asyncio.wait({self._taking}, timeout=PATIENCE_S)
        return self._latest or self._sample(None)

    async def _take(self) -> None:
        self._latest = await self._workers.run(Lane.SAMPLES, self._sample, self._store)

    def _taken(self, task: asyncio.Task[None]) -> None:
        self._taking = None
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("counters could not be read", error=repr(error))

    def _sample(self, store: _core.Store | None) -> Sample:
        began_s = time.thread_time()
        at, snapshot = self._clock(), Snapshot({})
        text = self._metrics.exposition(self._counted)
        if store is not None:
            totals, names, tables = store.snapshot()
            counters = {table: dict(zip(names, values, strict=True)) for table, values in tables}
            snapshot = Snapshot(totals | asdict(self.standing()), counters)
            text += exposition(snapshot)
        fresh_s = min(FRESH_FACTOR * (time.thread_time() - began_s), FRESH_MAX_S)
        metrics = self._metrics
        return Sample(at, snapshot, metrics.requests(), text, fresh_s, metrics.latencies())
