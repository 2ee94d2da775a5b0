"""Where calls are run: small ones on the event loop, others on engine threads, cold ones by the
service, large reads by `streaming`. Every way ends in `Connection.answered` or `ended`.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from typing import Any

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.rpc.booking import Booking
from hybridps.rpc.budget import Grant
from hybridps.rpc.connection import Connection
from hybridps.rpc.host import Host
from hybridps.rpc.sequencer import Order, order_of
from hybridps.rpc.streaming import Streams

log = logging.getLogger("hybridps.rpc")

# Looking ahead further than this only evicts what was fetched before; later asks are dropped.
PREFETCHES_MAX = 8

_INTERNAL = "HybridPSError: the call failed inside the server; its log has the details"


class Runner:
    """Runs the calls of all connections of a server."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # The loop keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()
        self._prefetches = 0

    @property
    def is_busy(self) -> bool:
        """True while calls run off the loop."""
        return bool(self._tasks)

    def start(self, connection: Connection, streams: Streams, booking: Booking) -> None:
        """Runs a call to its end, whatever becomes of the connection it serves."""
        call = booking.call
        if isinstance(call, _core.ColdCall):
            self._spawn(self._run_cold(connection, booking, call))
        elif call.verb == "prefetch":
            self._prefetch(connection, booking, call)
        elif self._is_inline(call):
            started = time.perf_counter()
            reply = call.run()
            self._host.metrics.observe(call.verb, call.code, time.perf_counter() - started)
            connection.answered(booking, connection.wire.answer(call.question) or reply)
        elif call.is_streamed:
            self._spawn(self._stream(connection, streams, booking, call))
        else:
            self._spawn(self._run_away(connection, booking, call))

    def _prefetch(self, connection: Connection, booking: Booking, call: _core.HotCall) -> None:
        """Answers, and warms the keys behind it; beyond a few at a time, asks are dropped."""
        reply = call.acknowledge()
        if call.code == "ok" and self._prefetches < PREFETCHES_MAX:
            # The frame stays as long as its keys are read.
            frame, booking.frame = booking.frame, self._host.frames.hold(0)
            self._spawn(self._warm(call, frame))
        self._host.metrics.observe(call.verb, call.code, 0.0)
        connection.answered(booking, connection.wire.answer(call.question) or reply)

    async def _warm(self, call: _core.HotCall, frame: Grant) -> None:
        self._prefetches += 1
        try:
            await self._host.workers.run(call.run)
            if call.code != "ok":
                log.warning("prefetch failed: %s", call.code)
        except Exception:
            log.exception("prefetch failed inside the server")
        finally:
            self._prefetches -= 1
            frame.release()

    def _is_inline(self, call: _core.HotCall) -> bool:
        limits = self._host.limits
        if call.cost > limits.inline_cost_bytes or self._host.may_wait:
            return False
        return limits.inline_pushes or order_of(call.verb) is not Order.PUSH

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_away(
        self, connection: Connection, booking: Booking, call: _core.HotCall
    ) -> None:
        started = time.perf_counter()
        try:
            reply = await self._host.workers.run(call.run)
            reply = connection.wire.answer(call.question) or reply
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            reply = connection.wire.fails(call.question, "failed", _INTERNAL)
        self._host.metrics.observe(call.verb, call.code, time.perf_counter() - started)
        connection.answered(booking, reply)

    async def _stream(
        self, connection: Connection, streams: Streams, booking: Booking, call: _core.HotCall
    ) -> None:
        started = time.perf_counter()
        grant, booking.reply = booking.reply, None
        if await streams.send(call, grant):
            self._host.metrics.observe(call.verb, call.code, time.perf_counter() - started)
        connection.ended(booking)

    async def _run_cold(
        self, connection: Connection, booking: Booking, call: _core.ColdCall
    ) -> None:
        try:
            results = await self._host.service.call(connection, call.verb, call.params)
            reply = connection.wire.returns(call.question, results)
        except HybridPSError as error:
            kind = "overloaded" if type(error).__name__ == "OverloadedError" else "failed"
            reason = f"{type(error).__name__}: {error}"
            reply = connection.wire.fails(call.question, kind, reason)
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            reply = connection.wire.fails(call.question, "failed", _INTERNAL)
        booking.reply = self._host.replies.hold(len(reply))
        connection.answered(booking, reply)
