"""What one connection has to send: frames in order, and the bytes that are held for them.

Frames are sent in the order in which they were put or begun, and none interrupts another: while
somebody sends the first in line past the outbox, those behind it wait. Never here: sockets.
"""

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hybridps.rpc.budget import Grant

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


@dataclass(eq=False, slots=True)
class Frame:
    """A frame on its way. `rest` is what the outbox sends of it, None while others do."""

    grant: Grant | None
    rest: memoryview | None = None
    # Set when all frames before it have left: True, or False when nothing is sent any more.
    turn: asyncio.Future[bool] | None = None

    def wake(self, is_open: bool) -> None:
        """Tells whoever waits for its turn."""
        if self.turn is not None and not self.turn.done():
            self.turn.set_result(is_open)


class Outbox:
    """Frames of one connection. What is held for a frame is given back when it was sent."""

    def __init__(self) -> None:
        self._frames: deque[Frame] = deque()
        # Of frames that were taken to their end, and may not have left yet.
        self._handed: list[Grant] = []
        self._is_closed = False
        self.unsent_bytes = 0

    def __bool__(self) -> bool:
        """True while a frame was not taken to its end."""
        return bool(self._frames)

    def put(self, whole: "ReadableBuffer", grant: Grant | None) -> None:
        """A whole frame, and what is held for it."""
        self.end(self.begin(grant), whole)

    def begin(self, grant: Grant | None) -> Frame:
        """A frame that somebody else sends when its turn comes."""
        frame = Frame(grant)
        if self._is_closed:
            _release(grant)
        else:
            self._frames.append(frame)
        return frame

    async def turn(self, frame: Frame) -> bool:
        """Waits until it is the turn of a frame that was begun; False: nothing is sent any more."""
        if self._is_closed or self._frames[0] is frame:
            return not self._is_closed
        frame.turn = asyncio.get_running_loop().create_future()
        return await frame.turn

    def end(self, frame: Frame, rest: "ReadableBuffer") -> None:
        """All of a frame that was begun has been sent, but for `rest`."""
        if self._is_closed:
            return
        frame.rest = memoryview(rest)
        self.unsent_bytes += len(frame.rest)

    def take(self, limit: int) -> memoryview | None:
        """The next bytes to send, at most `limit` of them."""
        while self._frames and (rest := self._frames[0].rest) is not None:
            chunk, self._frames[0].rest = rest[:limit], rest[limit:]
            self.unsent_bytes -= len(chunk)
            if len(chunk) == len(rest):
                self._end_first()
            if chunk:
                return chunk
        return None

    def handed_over(self) -> None:
        """All that was taken has left, or nearly: what ended frames held is given back."""
        handed, self._handed = self._handed, []
        for grant in handed:
            grant.release()

    def close(self) -> None:
        """Forgets all frames; who waits for a turn is told."""
        self._is_closed = True
        self.handed_over()
        for frame in self._frames:
            _release(frame.grant)
            frame.wake(is_open=False)
        self._frames.clear()
        self.unsent_bytes = 0

    def _end_first(self) -> None:
        grant = self._frames.popleft().grant
        if grant is not None:
            self._handed.append(grant)
        if self._frames:
            self._frames[0].wake(is_open=True)


def _release(grant: Grant | None) -> None:
    if grant is not None:
        grant.release()
