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

    __slots__ = ("_budget", "_state", "_then", "count")

    def __init__(self, budget: "Budget", count: int) -> None:
        self.count = count
        self._budget = budget
        self._state = State.NEW
        self._then: Callable[[], None] | None = None

    def __del__(self) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """True from the moment the bytes are the holder's until they are given back."""
        return self._state is State.HELD

    def hold(self) -> "Grant":
        """Counts bytes that exist already, whatever the limit."""
        self._budget.used += self.count
        self._state = State.HELD
        return self

    def take(self, then: Callable[[], None]) -> None:
        """Stands in line; calls `then` once the bytes are the holder's, perhaps now."""
        self._then = then
        self._state = State.WAITING
        self._budget.stand(self)

    def settle(self) -> None:
        """The budget's turn: the bytes are the holder's."""
        then, self._then = self._then, None
        self._budget.used += self.count
        self._state = State.HELD
        if then is not None:
            then()

    def release(self) -> None:
        """Gives the bytes back, or leaves the line. A second call does nothing."""
        state, self._state = self._state, State.RELEASED
        self._then = None
        if state is State.HELD:
            self._budget.used -= self.count
            self._budget.grant()
        elif state is State.WAITING:
            self._budget.leave(self)


class Budget:
    """Grants bytes in order of asking. One asker may exceed the limit if nothing else is held."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._line: deque[Grant] = deque()
        self._is_granting = False
        self.used = 0

    @property
    def is_short(self) -> bool:
        """True while somebody waits."""
        return bool(self._line)

    def hold(self, count: int) -> Grant:
        """A grant of bytes that exist already."""
        return Grant(self, count).hold()

    def stand(self, grant: Grant) -> None:
        """Puts a grant in line."""
        self._line.append(grant)
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
                if self.used and self.used + self._line[0].count > self._limit:
                    break
                self._line.popleft().settle()
        finally:
            self._is_granting = False
