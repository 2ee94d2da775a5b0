"""What one connection has to send: frames in order, whole or still growing, and their budget.

Frames are sent in the order in which they were begun, and none interrupts another: while the first
in line grows, those behind it wait. Never here: sockets.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# A growing frame takes a further piece while it holds less than this: enough that neither the
# socket nor the engine waits for the other.
_ROOM_BYTES = 1 << 19


@dataclass(eq=False, slots=True)
class Frame:
    """A frame on its way; `is_whole` once its last piece was added."""

    budgeted: int
    is_first: bool
    is_whole: bool = False
    pieces: deque[memoryview] = field(default_factory=deque)
    unsent_bytes: int = 0
    room: asyncio.Future[None] | None = None

    @property
    def has_room(self) -> bool:
        """True if it may grow: it is sent now, and the next piece would soon be missed."""
        return self.is_first and self.unsent_bytes < _ROOM_BYTES

    def wake(self) -> None:
        """Lets whoever waits for room look again."""
        if self.room is not None and not self.room.done():
            self.room.set_result(None)


class Outbox:
    """Frames of one connection. `release` gives budgeted bytes back when they were sent."""

    def __init__(self, release: Callable[[int], None]) -> None:
        self._release = release
        self._frames: deque[Frame] = deque()
        self._handed_bytes = 0
        self._is_closed = False
        self.unsent_bytes = 0

    def __bool__(self) -> bool:
        """True while a frame was not taken to its end."""
        return bool(self._frames)

    def put(self, whole: "ReadableBuffer", budgeted: int) -> None:
        """A whole frame, for which `budgeted` bytes were taken."""
        self.add(self.begin(budgeted), whole, is_last=True)

    def begin(self, budgeted: int) -> Frame:
        """A frame that comes piece by piece."""
        frame = Frame(budgeted, is_first=not self._frames)
        if self._is_closed:
            self._release(budgeted)
        else:
            self._frames.append(frame)
        return frame

    def add(self, frame: Frame, piece: "ReadableBuffer", *, is_last: bool) -> None:
        """Appends bytes to a frame that was begun."""
        if self._is_closed:
            return
        view = memoryview(piece)
        if view:
            frame.pieces.append(view)
        frame.is_whole = is_last
        frame.unsent_bytes += len(view)
        self.unsent_bytes += len(view)

    async def room(self, frame: Frame) -> bool:
        """Waits until the frame may grow; False when nothing is sent any more."""
        while not self._is_closed and not frame.has_room:
            frame.room = asyncio.get_running_loop().create_future()
            await frame.room
        return not self._is_closed

    def take(self, limit: int) -> memoryview | None:
        """The next bytes to send, at most `limit` of them."""
        while self._frames:
            frame = self._frames[0]
            if frame.pieces:
                return self._cut(frame, limit)
            if not frame.is_whole:
                return None
            self._end_first()
        return None

    def handed_over(self) -> None:
        """All that was taken has left, or nearly: the budget of ended frames is given back."""
        handed, self._handed_bytes = self._handed_bytes, 0
        if handed:
            self._release(handed)

    def close(self) -> None:
        """Forgets all frames; who waits for room is told."""
        self._is_closed = True
        self.handed_over()
        for frame in self._frames:
            self._release(frame.budgeted)
            frame.is_first = False
            frame.wake()
        self._frames.clear()
        self.unsent_bytes = 0

    def _cut(self, frame: Frame, limit: int) -> memoryview:
        piece = frame.pieces.popleft()
        if len(piece) > limit:
            frame.pieces.appendleft(piece[limit:])
            piece = piece[:limit]
        frame.unsent_bytes -= len(piece)
        self.unsent_bytes -= len(piece)
        if frame.is_whole and not frame.pieces:
            self._end_first()
        elif frame.has_room:
            frame.wake()
        return piece

    def _end_first(self) -> None:
        self._handed_bytes += self._frames.popleft().budgeted
        if self._frames:
            self._frames[0].is_first = True
            self._frames[0].wake()
