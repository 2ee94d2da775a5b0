"""Goal: calls of a connection keep their order, and bytes in flight their bound. Method: drive the
sequencer and the budget by hand, and against a plain model with random steps."""

import random
from collections.abc import Callable

import pytest

from hybridps.rpc import schemas
from hybridps.rpc.budget import Budget
from hybridps.rpc.sequencer import EXCLUSIVE, Sequencer


def test_every_verb_that_changes_something_is_exclusive() -> None:
    reads = {"lookup", "lookupOrInsert", "prefetch", "table", "tables", "size", "keys"}
    reads |= {"tableStats", "stats", "flush"}
    assert reads | EXCLUSIVE == schemas.VERBS
    assert not reads & EXCLUSIVE


def test_reads_overlap_and_pushes_stand_alone() -> None:
    line = Sequencer()
    started: list[str] = []

    def enter(name: str) -> None:
        line.enter(name.startswith("push"), lambda: started.append(name))

    for name in ("read 1", "read 2", "push 1", "push 2", "read 3", "read 4", "push 3"):
        enter(name)
    assert started == ["read 1", "read 2"]
    line.leave(False)
    assert started == ["read 1", "read 2"]
    line.leave(False)
    assert started[2:] == ["push 1"]
    line.leave(True)
    assert started[3:] == ["push 2"]
    line.leave(True)
    assert started[4:] == ["read 3", "read 4"]
    enter("read 5")  # Behind push 3, though reads are running.
    assert started[6:] == []
    line.leave(False)
    line.leave(False)
    assert started[6:] == ["push 3"]
    assert line.calls == 2
    line.leave(True)
    assert started[7:] == ["read 5"]


def test_calls_that_end_at_once_do_not_deepen_the_stack() -> None:
    line = Sequencer()
    done: list[int] = []

    def start(number: int) -> Callable[[], None]:
        def run() -> None:
            done.append(number)
            line.leave(number % 2 == 0)

        return run

    line.enter(True, lambda: None)
    for number in range(20_000):
        line.enter(number % 2 == 0, start(number))
    assert done == []
    line.leave(True)
    assert done == list(range(20_000))
    assert line.calls == 0


def test_what_was_not_started_can_be_dropped() -> None:
    line = Sequencer()
    started: list[int] = []
    line.enter(True, lambda: started.append(1))
    line.enter(False, lambda: started.append(2))
    line.clear()
    line.leave(True)
    assert (started, line.calls) == ([1], 0)


@pytest.mark.parametrize("seed", range(20))
def test_order_holds_for_random_calls(seed: int) -> None:
    rnd = random.Random(seed)
    line = Sequencer()
    running: dict[int, bool] = {}
    order: list[int] = []
    kinds = [rnd.random() < 0.3 for _ in range(300)]

    def start(number: int) -> None:
        assert not any(running.values())
        assert not (kinds[number] and running)
        running[number] = kinds[number]
        order.append(number)

    entered = 0
    while entered < len(kinds) or running:
        if entered < len(kinds) and rnd.random() < 0.5:
            line.enter(kinds[entered], lambda number=entered: start(number))
            entered += 1
        elif running:
            number = rnd.choice(list(running))
            line.leave(running.pop(number))
    assert order == list(range(300))


def test_budget_grants_in_order_and_within_its_limit() -> None:
    budget = Budget(100)
    granted: list[str] = []
    budget.take(60, lambda: granted.append("a"))
    budget.take(60, lambda: granted.append("b"))
    budget.take(10, lambda: granted.append("c"))  # Would fit, but b came first.
    assert (granted, budget.used, budget.is_short) == (["a"], 60, True)
    budget.release(60)
    assert (granted, budget.used, budget.is_short) == (["a", "b", "c"], 70, False)
    budget.add(500)
    budget.take(1, lambda: granted.append("d"))
    budget.release(500)
    assert (granted[3:], budget.used) == (["d"], 71)


def test_more_than_the_limit_is_granted_when_nothing_else_is_held() -> None:
    budget = Budget(100)
    granted: list[int] = []
    budget.take(250, lambda: granted.append(1))
    budget.take(250, lambda: granted.append(2))
    assert granted == [1]
    budget.release(250)
    assert granted == [1, 2]


def test_grants_that_are_given_back_at_once_do_not_deepen_the_stack() -> None:
    budget = Budget(10)
    granted: list[int] = []

    def take(number: int) -> Callable[[], None]:
        def run() -> None:
            granted.append(number)
            budget.release(10)

        return run

    budget.take(10, lambda: None)
    for number in range(20_000):
        budget.take(10, take(number))
    budget.release(10)
    assert granted == list(range(20_000))
    assert budget.used == 0
