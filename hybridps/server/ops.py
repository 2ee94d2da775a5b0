"""Ops HTTP: health for supervisors, metrics for Prometheus, a status page for people.

Reads only. `/livez` depends on nothing but the event loop, so that a slow device never makes a
supervisor kill the process; `/readyz` tells whether new calls are served. Never here: a way to
change anything, since this port carries no authentication.
"""

import asyncio
import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from aiohttp import web

from hybridps.config import Address
from hybridps.server import page
from hybridps.server.exposition import Snapshot
from hybridps.server.history import EVERY_S, History
from hybridps.server.metrics import CONTENT_TYPE
from hybridps.server.samples import Sample, Sampler
from hybridps.server.workers import Workers
from hybridps.verbs.kinds import Lane

# Rates reach back this far, or to the start; samples are kept no closer than SAMPLE_S, however many
# people watch.
RATE_WINDOW_S = 10.0
SAMPLE_S = 1.0
_SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
}


class Phase(enum.Enum):
    """Where the server is in its life; only `READY` serves new calls."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DRAINING = "draining"


class Ops:
    """The ops HTTP server. `told` is why the server is not all that it should be, in words."""

    def __init__(
        self, sampler: Sampler, workers: Workers, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.phase = Phase.STARTING
        self.told = ""
        self.facts: page.Facts | None = None
        self._sampler = sampler
        self._workers = workers
        self._clock = clock
        self._started = clock()
        self._samples: deque[Sample] = deque(maxlen=16)
        self.history = History()
        self._watch: asyncio.Task[None] | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, address: Address) -> Address:
        """Listens, and returns the address with the real port.

        Raises: OSError when the address cannot be bound.
        """
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/livez", self._livez),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._exposition),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, address.host, address.port).start()
        except OSError:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._keep_history())
        port = self._runner.addresses[0][1]
        return Address(address.host, port)

    async def stop(self) -> None:
        """Stops listening and ends open requests."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _keep_history(self) -> None:
        """Takes a sample every few seconds, whether anybody looks or not."""
        while True:
            sample = await self._sampler.latest()
            self.history.note(sample)
            self._remember(sample)
            await asyncio.sleep(EVERY_S)

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_SECURITY_HEADERS)

    async def _readyz(self, _request: web.Request) -> web.Response:
        status = 200 if self.phase is Phase.READY else 503
        lines = [self.phase.value, *filter(None, [self.told])]
        return web.Response(text="\n".join(lines) + "\n", status=status, headers=_SECURITY_HEADERS)

    async def _exposition(self, _request: web.Request) -> web.Response:
        body = (await self._sampler.latest()).exposition
        headers = {**_SECURITY_HEADERS, "Content-Type": CONTENT_TYPE}
        return web.Response(body=body, headers=headers)

    async def _page(self, _request: web.Request) -> web.Response:
        now = await self._sampler.latest()
        before = self._before(now)
        self._remember(now)
        counted = self._sampler.counted
        limits = now.snapshot.store
        charts = await self._workers.run(Lane.SAMPLES, self.history.charts, limits)
        view = page.View(
            phase=self.phase.value,
            told=self.told,
            facts=self.facts,
            uptime_s=self._clock() - self._started,
            connections=counted.connections if counted else 0,
            inflight_bytes=counted.inflight_bytes if counted else 0,
            now=now,
            before=before,
            charts=charts,
        )
        # Of a thousand tables it is long, too.
        text = await self._workers.run(Lane.SAMPLES, page.render, view)
        return web.Response(text=text, content_type="text/html", headers=_SECURITY_HEADERS)

    def _remember(self, sample: Sample) -> None:
        """Keeps a sample for the rates of later views; before the store is open there are none."""
        if not sample.snapshot.store:
            return
        if not self._samples or sample.at - self._samples[-1].at >= SAMPLE_S:
            # Of thousands of tables the rest would be megabytes each.
            kept = Snapshot(sample.snapshot.store)
            self._samples.append(replace(sample, snapshot=kept, exposition=b""))

    def _before(self, now: Sample) -> Sample | None:
        """The oldest sample of the rate window, None for the start."""
        return next((s for s in self._samples if now.at - s.at <= RATE_WINDOW_S), None)
