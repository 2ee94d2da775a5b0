"""What one call holds while it is under way, in one object that gives all of it back."""

import time

from hybridps import _core
from hybridps.rpc.budget import Grant
from hybridps.rpc.sequencer import Place, Sequencer


class Booking:
    """A call with what it holds: the bytes of its frame, those of its reply, its place in the
    order. Whoever has the booking has the call: `release` ends both, once, from any state.

    `received_s`: when its last byte came (time.monotonic).
    """

    __slots__ = (
        *("_line", "begun_s", "call", "frame", "is_started", "place", "received_s", "reply"),
    )

    def __init__(
        self,
        call: _core.HotCall | _core.ColdCall,
        frame: Grant,
        line: Sequencer,
        received_s: float,
    ) -> None:
        self.call = call
        self.received_s = received_s
        # When the engine began with it; None: it waits.
        self.begun_s: float | None = None
        self.frame = frame
        # None: nothing was asked for yet, or it went with the reply to the outbox.
        self.reply: Grant | None = None
        self.place: Place | None = None
        # Somebody runs it: it ends when they are done, whatever becomes of the connection.
        self.is_started = False
        self._line = line

    def begin(self) -> None:
        """The engine begins with the call now, on the thread that says so."""
        if self.begun_s is None:
            self.begun_s = time.monotonic()

    def step_aside(self) -> None:
        """Gives its place in the order up; calls behind it may start."""
        if self.place is not None:
            place, self.place = self.place, None
            self._line.leave(place)

    def release(self) -> None:
        """Gives everything back. A second call does nothing."""
        self.frame.release()
        if self.reply is not None:
            self.reply.release()
            self.reply = None
        self.step_aside()
