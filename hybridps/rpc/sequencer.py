"""The order of one connection's calls: a call sees every earlier push and none sent later.

Reads between two pushes may overlap; a push waits for all earlier calls, and later calls wait for
it. Callbacks, not coroutines: a call that may start at once starts inside `enter`, at no cost.
"""

from collections import deque
from collections.abc import Callable

# Verbs that change what other verbs see; `hello` names the session of the pushes behind it.
EXCLUSIVE = frozenset(
    {
        "applyGradients",
        "hello",
        "assign",
        "remove",
        "createTable",
        "dropTable",
        "setLearningRate",
        "alter",
    }
)


class Sequencer:
    """Starts calls in the order in which they entered; each must `leave` once."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bool, Callable[[], None]]] = deque()
        self._reads = 0
        self._is_exclusive = False
        self._is_starting = False

    @property
    def calls(self) -> int:
        """Calls that run or wait."""
        return len(self._waiting) + self._reads + self._is_exclusive

    def enter(self, is_exclusive: bool, start: Callable[[], None]) -> None:
        """Calls `start` when the calls before it allow, perhaps now."""
        self._waiting.append((is_exclusive, start))
        self._start()

    def leave(self, is_exclusive: bool) -> None:
        """A call that was started has ended."""
        if is_exclusive:
            self._is_exclusive = False
        else:
            self._reads -= 1
        self._start()

    def clear(self) -> None:
        """Drops the calls that were not started."""
        self._waiting.clear()

    def _start(self) -> None:
        # A start may end its call at once and so come back here; the loop of the first entry
        # goes on with what that made possible, else a long queue would exhaust the stack.
        if self._is_starting:
            return
        self._is_starting = True
        try:
            while self._waiting and not self._is_exclusive:
                is_exclusive, start = self._waiting[0]
                if is_exclusive and self._reads:
                    break
                self._waiting.popleft()
                if is_exclusive:
                    self._is_exclusive = True
                else:
                    self._reads += 1
                start()
        finally:
            self._is_starting = False
