"""Ops HTTP: health for supervisors, metrics for Prometheus, a status page for people.

Reads only. `/livez` depends on nothing but the event loop, so that a slow device never makes a
supervisor kill the process; `/readyz` tells whether new calls are served. Never here: a way to
change anything, since this port carries no authentication.
"""

import enum
import time
from collections import deque
from collections.abc import Awaitable, Callable

from aiohttp import web

from hybridps.config import Address
from hybridps.server import page
from hybridps.server.metrics import CONTENT_TYPE, Counted, Metrics, Snapshot

# Rates reach back this far if the page was viewed then, else to the start; samples are kept no
# closer than SAMPLE_S, however many people watch.
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
    DRAINING = "draining"


class Ops:
    """The ops HTTP server. `snapshot` asks the engine off the loop; None before it is open."""

    def __init__(
        self,
        metrics: Metrics,
        snapshot: Callable[[], Awaitable[Snapshot | None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phase = Phase.STARTING
        self.facts: page.Facts | None = None
        self.counted: Counted | None = None
        self._metrics = metrics
        self._snapshot = snapshot
        self._clock = clock
        self._started = clock()
        self._samples: deque[page.Sample] = deque(maxlen=16)
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
        port = self._runner.addresses[0][1]
        return Address(address.host, port)

    async def stop(self) -> None:
        """Stops listening and ends open requests."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _livez(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n", headers=_SECURITY_HEADERS)

    async def _readyz(self, _request: web.Request) -> web.Response:
        status = 200 if self.phase is Phase.READY else 503
        return web.Response(text=f"{self.phase.value}\n", status=status, headers=_SECURITY_HEADERS)

    async def _exposition(self, _request: web.Request) -> web.Response:
        body = self._metrics.exposition(await self._snapshot(), self.counted)
        headers = {**_SECURITY_HEADERS, "Content-Type": CONTENT_TYPE}
        return web.Response(body=body, headers=headers)

    async def _page(self, _request: web.Request) -> web.Response:
        snapshot = await self._snapshot() or Snapshot({})
        now = page.Sample(self._clock(), snapshot.store, self._metrics.requests())
        view = page.View(
            phase=self.phase.value,
            facts=self.facts,
            uptime_s=now.at - self._started,
            connections=self.counted.connections if self.counted else 0,
            inflight_bytes=self.counted.inflight_bytes if self.counted else 0,
            tables=snapshot.tables,
            now=now,
            before=self._before(now),
        )
        return web.Response(
            text=page.render(view), content_type="text/html", headers=_SECURITY_HEADERS
        )

    def _before(self, now: page.Sample) -> page.Sample:
        """The oldest sample of the rate window, else the start; keeps `now` for later views."""
        before = next((s for s in self._samples if now.at - s.at <= RATE_WINDOW_S), None)
        if not self._samples or now.at - self._samples[-1].at >= SAMPLE_S:
            self._samples.append(now)
        return before or page.Sample(self._started, {}, {})
