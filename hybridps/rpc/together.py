"""Pushes of workers that are applied as one: brings them to their round, has a round applied that
is due, and answers all of it. What a round is, `rounds` says.
"""

import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NamedTuple

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.rpc.booking import Booking
from hybridps.rpc.connection import Connection
from hybridps.rpc.host import Host
from hybridps.verbs import VERBS

log = logging.getLogger("hybridps.rpc")

_INTERNAL = "HybridPSError: the call failed inside the server; its log has the details"


class Held(NamedTuple):
    """A push that waits for those of other workers."""

    connection: Connection
    booking: Booking
    tables: Sequence[int]


class Together:
    """The pushes of all workers of a server.

    `spawn` runs something beside; `observe` counts an answered call by its outcome.
    """

    def __init__(
        self,
        host: Host,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        observe: Callable[[Booking, str], None],
    ) -> None:
        self._host = host
        self._spawn = spawn
        self._observe = observe

    async def bring(self, connection: Connection, booking: Booking, call: _core.HotCall) -> None:
        """Takes a push in, which then waits for the others, or is answered."""
        reply: _core.Buffer | None
        try:
            reply = await self._host.workers.run(VERBS[call.verb].LANE, call.hold)
            code = call.code
            if reply is None:
                reply, code = self._enter(connection, booking, call)
        except Exception:
            log.exception("call failed inside the server: verb=%s", call.verb)
            reply, code = connection.wire.fails(call.question, "failed", _INTERNAL), "HybridPSError"
        if reply is not None:
            self._observe(booking, code)
            connection.answered(booking, connection.wire.answer(call.question) or reply)
        self._advance()

    def check(self, now_s: float) -> None:
        """Lets go of pushes that nobody waits for any more, and tells of rounds that wait long."""
        self._let_go()
        for number, ranks in self._host.rounds.late(now_s).items():
            names = ", ".join(map(str, ranks))
            log.warning("round %d waits for workers that have not pushed: rank %s", number, names)

    def close(self) -> None:
        """The server stops: what waits is to be sent again, to whoever comes after it."""
        for connection, booking, _ in self._host.rounds.clear():
            text = "UnavailableError: this server is shutting down"
            fails = connection.wire.fails(booking.call.question, "disconnected", text)
            connection.answered(booking, fails)

    def _enter(
        self, connection: Connection, booking: Booking, call: _core.HotCall
    ) -> tuple[_core.Buffer | None, str]:
        """The reply, if the push is not to wait."""
        wire, rank = connection.wire, connection.rank
        if rank is None or not connection.is_open:
            return wire.fails(call.question, "failed", "canceled"), "ok"
        self._let_go()
        held, rounds = Held(connection, booking, call.tables), self._host.rounds
        try:
            if not rounds.bring(
                rank, call.number, call.step, held.tables, held, booking.received_s
            ):
                return call.acknowledge(), "ok"
            connection.keep(booking)
        except HybridPSError as error:
            rounds.withdraw(held)
            code = type(error).__name__
            kind = "overloaded" if code == "OverloadedError" else "failed"
            return wire.fails(call.question, kind, f"{code}: {error}"), code
        return None, "ok"

    def _let_go(self) -> None:
        rounds = self._host.rounds
        for held in rounds.waiting():
            if held.connection.wire.cancelled(held.booking.call.question):
                rounds.withdraw(held)
                held.connection.forsake(held.booking)

    def _advance(self) -> None:
        """Has the round applied that is due."""
        self._let_go()
        due = self._host.rounds.due()
        if due is not None:
            self._spawn(self._apply(*due))

    async def _apply(self, number: int, held: Sequence[Held]) -> None:
        calls: Any = [booking.call for _, booking, _ in held]

        def work() -> list[_core.Buffer]:
            for _, booking, _ in held:
                booking.begin()
            return _core.apply_together(calls, number)

        replies: Sequence[_core.Buffer | None]
        try:
            replies = await self._host.workers.run(VERBS[calls[0].verb].LANE, work)
        except Exception:
            log.exception("round %d failed inside the server", number)
            replies = [None] * len(held)
        is_applied = None not in replies and calls[0].code == "ok"
        self._host.rounds.ended(is_applied=is_applied)
        for (connection, booking, _), made in zip(held, replies, strict=True):
            wire, call = connection.wire, booking.call
            self._observe(booking, "HybridPSError" if made is None else calls[0].code)
            reply = made or wire.fails(call.question, "failed", _INTERNAL)
            connection.answered(booking, wire.answer(call.question) or reply)
        self._advance()
