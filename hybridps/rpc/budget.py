"""A bound on bytes that all connections together hold, with a fair line for what does not fit."""

from collections import deque
from collections.abc import Callable


class Budget:
    """Grants bytes in order of asking. One asker may exceed the limit if nothing else is held."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._is_granting = False
        self.used = 0

    @property
    def is_short(self) -> bool:
        """True while somebody waits."""
        return bool(self._waiting)

    def take(self, count: int, granted: Callable[[], None]) -> None:
        """Calls `granted` once `count` bytes are the caller's, perhaps now."""
        self._waiting.append((count, granted))
        self._grant()

    def add(self, count: int) -> None:
        """Counts bytes that exist already, whatever the limit."""
        self.used += count

    def release(self, count: int) -> None:
        """Gives bytes back."""
        self.used -= count
        self._grant()

    def _grant(self) -> None:
        if self._is_granting:
            return
        self._is_granting = True
        try:
            while self._waiting:
                count, granted = self._waiting[0]
                if self.used and self.used + count > self._limit:
                    break
                self._waiting.popleft()
                self.used += count
                granted()
        finally:
            self._is_granting = False
