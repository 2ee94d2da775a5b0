"""A bound on bytes that all connections together hold, with a fair line for what does not fit."""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto


class State(Enum):
    """What a grant is at."""

    NEW = auto()
    WAITING = auto()
    HELD = auto()
    RELEASED = auto()


class Grant:
    """Bytes of a budget, asked for once and given back once: by `release`, in whatever state the
    grant is, or when nobody holds it any more.
    """

    __slots__ = ("_budget", "_state", "_then", "_was_asked", "count")

    def __init__(self, budget: "Budget", count: int) -> None:
        self.count = count
        self._budget = budget
        self._state = State.NEW
        self._then: Callable[[], None] | None = None
        self._was_asked = False

    def __del__(self) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """True from the moment the bytes are the holder's until they are given back."""
        return self._state is State.HELD

    def hold(self) -> "Grant":
        """Counts bytes that exist already, whatever the limit."""
        self._state = State.HELD
        self._budget.count(self.count, was_asked=False)
        return self

    def take(self, then: Callable[[], None]) -> None:
        """Stands in line; calls `then` once the bytes are the holder's, perhaps now."""
        self._then = then
        self._was_asked = True
        self._state = State.WAITING
        self._budget.stand(self)

    def settle(self) -> None:
        """The budget's turn: the bytes are the holder's."""
        then, self._then = self._then, None
        self._state = State.HELD
        self._budget.count(self.count, was_asked=True)
        if then is not None:
            then()

    def release(self) -> None:
        """Gives the bytes back, or leaves the line. A second call does nothing."""
        state, self._state = self._state, State.RELEASED
        self._then = None
        if state is State.HELD:
            self._budget.count(-self.count, was_asked=self._was_asked)
        elif state is State.WAITING:
            self._budget.leave(self)


class Budget:
    """Grants bytes in order of asking.

    One asker may exceed the limit if nothing else was granted; bytes that exist already do not
    count there, since there may always be some, and nobody is to wait for ever.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._line: deque[Grant] = deque()
        self._is_granting = False
        # Of `used`, what was asked for.
        self._granted = 0
        self.used = 0

    @property
    def is_short(self) -> bool:
        """True while somebody waits."""
        return bool(self._line)

    def hold(self, count: int) -> Grant:
        """A grant of bytes that exist already."""
        return Grant(self, count).hold()

    def has_room(self, count: int) -> bool:
        """Whether so many bytes more are within the limit."""
        return self.used + count <= self._limit

    def stand(self, grant: Grant) -> None:
        """Puts a grant in line."""
        self._line.append(grant)
        self.grant()

    def count(self, count: int, *, was_asked: bool) -> None:
        """Bytes are held from now on, or, below 0, no longer."""
        self.used += count
        if was_asked:
            self._granted += count
        if count < 0:
            self.grant()

    def leave(self, grant: Grant) -> None:
        """Takes a grant out of the line; what stood behind it may fit now."""
        self._line.remove(grant)
        self.grant()

    def grant(self) -> None:
        """Settles what fits. Settling may release and come back here: the first entry goes on."""
        if self._is_granting:
            return
        self._is_granting = True
        try:
            while self._line:
                count = self._line[0].count
                if self._granted and self.used + count > self._limit:
                    break
                self._line.popleft().settle()
        finally:
            self._is_granting = False
