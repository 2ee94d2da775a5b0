"""The order of one connection's calls: a call sees every earlier push and none sent later.

Reads between two pushes may overlap; a push waits for all earlier calls, and later calls wait for
it. Free calls are long and change no row: they neither wait nor are waited for. Callbacks, not
coroutines: a call that may start at once starts inside `enter`, at no cost.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum, auto

from hybridps.verbs.kinds import Order


class State(Enum):
    """Where a call stands."""

    NEW = auto()
    WAITING = auto()
    STARTED = auto()
    LEFT = auto()


class Place:
    """A call's place in the order: `leave` gives it up, once, whether it was started or not."""

    __slots__ = ("order", "start", "state")

    def __init__(self, order: Order, start: Callable[[], None]) -> None:
        self.order = order
        self.start = start
        self.state = State.NEW


class Sequencer:
    """Starts calls in the order in which they entered."""

    def __init__(self) -> None:
        self._waiting: deque[Place] = deque()
        self._running = dict.fromkeys(Order, 0)
        self._is_starting = False
        # Calls that run or wait.
        self.calls = 0

    def enter(self, place: Place) -> None:
        """Calls the place's `start` when the calls before it allow, perhaps now."""
        self.calls += 1
        if place.order is Order.FREE:
            self._begin(place)
            return
        place.state = State.WAITING
        self._waiting.append(place)
        self._start()

    def leave(self, place: Place) -> None:
        """A call has ended, or is given up before it was started. A second call does nothing."""
        state, place.state = place.state, State.LEFT
        if state is State.WAITING:
            self._waiting.remove(place)
        elif state is State.STARTED:
            self._running[place.order] -= 1
        else:
            return
        self.calls -= 1
        self._start()

    def _may_start(self, order: Order) -> bool:
        if self._running[Order.PUSH]:
            return False
        return order is Order.READ or not self._running[Order.READ]

    def _begin(self, place: Place) -> None:
        place.state = State.STARTED
        self._running[place.order] += 1
        place.start()

    def _start(self) -> None:
        # A start may end its call at once and so come back here; the loop of the first entry
        # goes on with what that made possible, else a long queue would exhaust the stack.
        if self._is_starting:
            return
        self._is_starting = True
        try:
            while self._waiting and self._may_start(self._waiting[0].order):
                self._begin(self._waiting.popleft())
        finally:
            self._is_starting = False
