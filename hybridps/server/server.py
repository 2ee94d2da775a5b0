"""One server put together: store, workers, verbs, listener, ops; their order of life and death.

Start: sockets are bound (a taken port fails at once), ops HTTP answers, the store is opened, then
calls are taken. Stop: not ready, no new connection, calls in flight are finished, the store is
flushed and closed. Whatever step fails, the steps before it are undone.
"""

import asyncio
import socket

from hybridps import _core
from hybridps.config import Address, ServerConfig
from hybridps.replica.follower import Followed
from hybridps.replica.service import Replica, check_directory
from hybridps.rpc.listener import Limits, Listener
from hybridps.server.guard import Guard
from hybridps.server.logs import Logger
from hybridps.server.metrics import Metrics
from hybridps.server.ops import Ops, Phase
from hybridps.server.page import Facts
from hybridps.server.samples import Sampler
from hybridps.server.schedule import Schedule
from hybridps.server.service import Service
from hybridps.server.sockets import StartError, UnixSocket, bind_tcp, bind_unix, cannot_listen
from hybridps.server.workers import INLINE_COST_MAX_BYTES, Workers
from hybridps.sizes import format_size
from hybridps.verbs.kinds import Lane

WARN_EVERY_S = 3600.0
HEALTH_EVERY_S = 0.25

log = Logger("hybridps.server")


class Server:
    """Everything that one process serves."""

    def __init__(
        self,
        config: ServerConfig,
        guard: Guard,
        loop_name: str,
        followed: Followed | None = None,
    ) -> None:
        self._config = config
        self._followed = followed
        self._replica: Replica | None = None
        self._guard = guard
        self._loop_name = loop_name
        self._metrics = Metrics(_core.__version__, config.shard, loop_name)
        self._workers = Workers(config.threads)
        self._sampler = Sampler(self._metrics, self._workers)
        self._ops = Ops(self._sampler, self._workers)
        self._ops_address: Address | None = None
        self._tcp: socket.socket | None = None
        self._unix: UnixSocket | None = None
        self._store: _core.Store | None = None
        self._listener: Listener | None = None
        self._tables = 0
        self._watches: list[asyncio.Task[None]] = []
        # Set when the store serves no more until it is opened again.
        self.failed = asyncio.Event()
        self._warning: asyncio.TimerHandle | None = None

    @property
    def url(self) -> str:
        """Where clients connect: TCP if it listens there, else the unix socket."""
        if self._tcp is not None:
            host, port = self._tcp.getsockname()[:2]
            return f"hps://{Address(host, port)}"
        return f"hps+unix://{self._config.unix and self._config.unix.absolute()}"

    def ready_line(self) -> str:
        """The one line of stdout."""
        return (
            f"hybridps ready {self.url} data={self._config.data}"
            f" dram={format_size(self._config.dram_bytes)} tables={self._tables}"
        )

    async def start(self) -> None:
        """Returns when calls are served.

        Raises: StartError or HybridPSError when it cannot; `stop` undoes what was done.
        """
        self._bind()
        await self._start_ops()
        self._store = await self._workers.run(Lane.ORDERS, _open, self._config)
        if self._followed is not None:
            await self._follow(self._store, self._followed)
        self._tables = len(self._store.tables())
        await self._sampler.use(self._store)
        service = Service(self._store, self._config, self._workers, self._replica)
        await self._listen(self._store, service)
        schedule = Schedule(self._store, self._workers, self._config)
        watched = (
            self._watch_health(self._store),
            self._guard.watch(self._workers),
            schedule.run(),
        )
        self._watches = [asyncio.create_task(watch) for watch in watched]
        self._ops.facts = self._facts()
        self._ops.phase = Phase.READY
        self._warn_if_open()
        log.info("ready", io=self._store.io_description(), **self._report())

    async def stop(self) -> None:
        """Finishes calls in flight, flushes, closes; safe after a failed start."""
        was_ready = self._ops.phase in (Phase.READY, Phase.FAILED)
        if self._warning is not None:
            self._warning.cancel()
        for watch in self._watches:
            watch.cancel()
        self._ops.phase = Phase.DRAINING
        try:
            if was_ready:
                log.info("draining")
            if self._listener is not None:
                await self._listener.drain(self._config.drain_s)
            await self._sampler.use(None)  # The ops port stays up and no longer asks the store.
            if self._replica is not None:
                await self._replica.stop()
            if self._store is not None:
                await self._workers.run(Lane.ORDERS, _close, self._store)
        finally:
            await self._workers.close()
            await self._ops.stop()
            if self._unix is not None:
                self._unix.socket.close()
                self._unix.remove()
            if self._tcp is not None:
                self._tcp.close()
        if was_ready:
            log.info("stopped")

    def _bind(self) -> None:
        if self._config.listen is not None:
            self._tcp = bind_tcp(self._config.listen)
        if self._config.unix is not None:
            self._unix = bind_unix(self._config.unix, self._config.data)

    async def _start_ops(self) -> None:
        address = self._config.ops
        if address is None:
            return
        try:
            self._ops_address = await self._ops.start(address)
        except OSError as error:
            raise StartError(cannot_listen(str(address), error) + " (--ops)") from None

    async def _watch_health(self, store: _core.Store) -> None:
        """Tells supervisors and the log when the store does not serve all that it should."""
        known = ("ok", "")
        while True:
            health = store.health()
            if health[0] != known[0]:
                self._note_health(*health)
            known = health
            self._ops.told = health[1] and f"{health[0]}: {health[1]}"
            _note_damaged(store)
            await asyncio.sleep(HEALTH_EVERY_S)

    def _note_health(self, health: str, reason: str) -> None:
        if health == "failed":
            log.error("store failed; it must be opened again", reason=reason)
            self._ops.phase = Phase.FAILED
            self.failed.set()
        elif health == "degraded":
            log.warning("store refuses what needs room", reason=reason)
        else:
            log.info("store serves everything again")

    async def _follow(self, store: _core.Store, followed: Followed) -> None:
        data, note = self._config.data, log.warning
        replica = await self._workers.run(Lane.ORDERS, Replica, store, data, followed, note)
        self._replica = replica  # From here on `stop` ends it.
        self._sampler.standing = lambda: replica.standing
        await replica.start()

    async def _listen(self, store: _core.Store, service: Service) -> None:
        config = self._config
        limits = Limits(
            frame_bytes=config.frame_limit_bytes,
            keys=config.keys_limit,
            connections=config.connections_max,
            inflight_bytes=config.inflight_max_bytes,
            inline_cost_bytes=INLINE_COST_MAX_BYTES,
        )
        listener = Listener(
            *(store, service, self._workers, self._metrics, limits),
            keyring=self._guard.keyring,
            replica=self._replica,
        )
        self._listener = listener  # From here on `stop` drains it.
        self._sampler.count(listener)
        unix = None if self._unix is None else self._unix.socket
        for place, listening in ((str(config.listen), self._tcp), (str(config.unix), unix)):
            if listening is None:
                continue
            try:
                tls = None if listening is unix else self._guard.tls
                await listener.listen(listening, tls)
            except OSError as error:
                # Two servers may bind one port; the second to listen on it is told here.
                raise StartError(cannot_listen(place, error)) from None

    def _facts(self) -> Facts:
        return Facts(
            url=self.url,
            data=str(self._config.data.absolute()),
            version=_core.__version__,
            durability=self._config.durability,
            shard=self._config.shard,
            loop=self._loop_name,
            follows=self._config.follow,
        )

    def _warn_if_open(self) -> None:
        """Says every hour that others can read and write the traffic."""
        config = self._config
        listen = None if config.is_secured else config.listen
        reachable = {
            name: str(address)
            for name, address in (("listen", listen), ("ops", config.ops))
            if address is not None and not address.is_loopback
        }
        if reachable:
            log.warning("bound beyond loopback without encryption or authentication", **reachable)
            loop = asyncio.get_running_loop()
            self._warning = loop.call_later(WARN_EVERY_S, self._warn_if_open)

    def _report(self) -> dict[str, object]:
        """The fields of the log's ready event; the only place that tells the ops port in use."""
        config = self._config
        return {
            "url": self.url,
            "unix": config.unix and str(config.unix.absolute()),
            "ops": self._ops_address and f"http://{self._ops_address}",
            "data": str(config.data.absolute()),
            "dram": format_size(config.dram_bytes),
            "nvme": format_size(config.nvme_bytes),
            "cold": config.cold and str(config.cold.absolute()),
            "cold_cap": config.cold_cap_bytes and format_size(config.cold_cap_bytes),
            "durability": config.durability,
            "follow": config.follow,
            "shard": f"{config.shard[0]}/{config.shard[1]}",
            "threads": config.threads,
            "loop": self._loop_name,
            "tables": self._tables,
            "version": _core.__version__,
        }


def _open(config: ServerConfig) -> _core.Store:
    if config.follow is None:
        check_directory(config.data)
    return _core.Store(
        str(config.data),
        dram=config.dram_bytes,
        nvme=config.nvme_bytes,
        durability=config.durability,
        threads=config.threads,
        shard=config.shard[0],
        shards=config.shard[1],
        scrub_rate=config.scrub_rate_bytes,
        cold=None if config.cold is None else (str(config.cold), config.cold_cap_bytes or 0),
    )


def _note_damaged(store: _core.Store) -> None:
    """Tells the log what was found damaged since the last time."""
    found, left_out = store.take_damaged()
    for row, offset, fate in found:
        table, key = row or (None, None)
        log.error("damaged on the device", table=table, key=key, offset=offset, fate=fate)
    if left_out:
        log.error("more was found damaged than is told", left_out=left_out)


def _close(store: _core.Store) -> None:
    try:
        store.flush()
    finally:
        store.close()
