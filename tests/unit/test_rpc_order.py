"""Goal: calls of a connection keep their order, bytes in flight their bound, and whatever was
granted comes back once, from every state. Method: drive sequencer and budget by hand, and against
a plain model with random steps."""

import random
from collections.abc import Callable

import pytest

from hybridps.rpc.budget import Budget, Grant
from hybridps.rpc.sequencer import Place, Sequencer
from hybridps.verbs import VERBS
from hybridps.verbs.kinds import Order


def nothing() -> None:
    """A start that leaves its call running."""


def test_every_verb_that_changes_something_is_a_push() -> None:
    def of(order: Order) -> set[str]:
        return {name for name, verb in VERBS.items() if verb.ORDER is order}

    reads = {"lookup", "lookupOrInsert", "prefetch", "table", "tables", "size", "keys"}
    reads |= {"tableStats", "stats", "lookupPooled", "inspect", "cursor", "staleness"}
    reads |= {"statistics"}
    assert of(Order.READ) == reads
    free = {"flush", "scrub", "changes", "expire", "exportRows", "checkpoint", "restore"}
    assert of(Order.FREE) == free


def test_reads_overlap_and_pushes_stand_alone() -> None:
    line = Sequencer()
    started: list[str] = []
    places: dict[str, Place] = {}

    def enter(name: str) -> None:
        order = Order.PUSH if name.startswith("push") else Order.READ
        places[name] = Place(order, lambda: started.append(name))
        line.enter(places[name])

    def leave(name: str) -> None:
        line.leave(places[name])

    for name in ("read 1", "read 2", "push 1", "push 2", "read 3", "read 4", "push 3"):
        enter(name)
    assert started == ["read 1", "read 2"]
    leave("read 1")
    assert started == ["read 1", "read 2"]
    leave("read 2")
    assert started[2:] == ["push 1"]
    leave("push 1")
    assert started[3:] == ["push 2"]
    leave("push 2")
    assert started[4:] == ["read 3", "read 4"]
    enter("read 5")  # Behind push 3, though reads are running.
    assert started[6:] == []
    leave("read 4")
    leave("read 3")
    assert started[6:] == ["push 3"]
    assert line.calls == 2
    leave("push 3")
    leave("push 3")
    assert started[7:] == ["read 5"]
    assert line.calls == 1


def test_free_calls_neither_wait_nor_are_waited_for() -> None:
    line = Sequencer()
    started: list[str] = []
    push = Place(Order.PUSH, lambda: started.append("push"))
    first = Place(Order.FREE, lambda: started.append("first"))
    second = Place(Order.FREE, lambda: started.append("second"))
    line.enter(first)
    line.enter(push)
    line.enter(second)
    assert (started, line.calls) == (["first", "push", "second"], 3)
    for place in (push, second, first):
        line.leave(place)
    assert line.calls == 0


def test_calls_that_end_at_once_do_not_deepen_the_stack() -> None:
    line = Sequencer()
    done: list[int] = []

    def enter(number: int) -> None:
        def run() -> None:
            done.append(number)
            line.leave(place)

        place = Place(Order.PUSH if number % 2 == 0 else Order.READ, run)
        line.enter(place)

    first = Place(Order.PUSH, nothing)
    line.enter(first)
    for number in range(20_000):
        enter(number)
    assert done == []
    line.leave(first)
    assert done == list(range(20_000))
    assert line.calls == 0


def test_a_call_that_waits_can_be_given_up_and_frees_those_behind_it() -> None:
    line = Sequencer()
    started: list[str] = []
    read = Place(Order.READ, lambda: started.append("read"))
    push = Place(Order.PUSH, lambda: started.append("push"))
    behind = Place(Order.READ, lambda: started.append("behind"))
    for place in (read, push, behind):
        line.enter(place)
    line.leave(push)
    line.leave(push)
    assert (started, line.calls) == (["read", "behind"], 2)


@pytest.mark.parametrize("seed", range(20))
def test_order_holds_for_random_calls(seed: int) -> None:
    rnd = random.Random(seed)
    line = Sequencer()
    running: set[int] = set()
    order: list[int] = []
    places: list[Place] = []
    given_up: set[int] = set()
    kinds = [Order.PUSH if rnd.random() < 0.3 else Order.READ for _ in range(300)]

    def start(number: int) -> None:
        assert not any(kinds[other] is Order.PUSH for other in running)
        assert kinds[number] is Order.READ or not running
        running.add(number)
        order.append(number)

    while len(places) < len(kinds) or running:
        step = rnd.random()
        if len(places) < len(kinds) and step < 0.5:
            number = len(places)
            places.append(Place(kinds[number], lambda number=number: start(number)))
            line.enter(places[number])
        elif step < 0.55 and len(places) > len(order) + len(given_up):
            number = rnd.choice([n for n in range(len(places)) if n not in order])
            given_up.add(number)
            line.leave(places[number])
        elif running:
            number = rnd.choice(sorted(running))
            running.remove(number)
            line.leave(places[number])
        assert line.calls == len(places) - len(given_up) - (len(order) - len(running))
    assert order == [n for n in range(300) if n not in given_up]
    assert line.calls == 0


def asker(budget: Budget, count: int, granted: list[str], name: str) -> Grant:
    grant = Grant(budget, count)
    grant.take(lambda: granted.append(name))
    return grant


def test_budget_grants_in_order_and_within_its_limit() -> None:
    budget = Budget(100)
    granted: list[str] = []
    first = asker(budget, 60, granted, "a")
    others = [asker(budget, 60, granted, "b"), asker(budget, 10, granted, "c")]
    # c would fit, but b came first.
    assert (granted, budget.used, budget.is_short) == (["a"], 60, True)
    assert (first.is_held, others[0].is_held) == (True, False)
    first.release()
    first.release()
    assert (granted, budget.used, budget.is_short) == (["a", "b", "c"], 70, False)
    exists = budget.hold(500)
    last = asker(budget, 1, granted, "d")
    exists.release()
    assert (granted[3:], budget.used) == (["d"], 71)
    assert last.is_held


def test_more_than_the_limit_is_granted_when_nothing_else_is_held() -> None:
    budget = Budget(100)
    granted: list[str] = []
    first, second = (asker(budget, 250, granted, name) for name in "ab")
    assert granted == ["a"]
    first.release()
    assert granted == ["a", "b"]
    assert second.is_held


def test_who_leaves_the_line_lets_others_through() -> None:
    budget = Budget(100)
    granted: list[str] = []
    first, large, small = (asker(budget, n, granted, str(n)) for n in (60, 90, 30))
    assert granted == ["60"]
    large.release()
    assert (granted, budget.used, budget.is_short) == (["60", "30"], 90, False)
    for grant in (first, small, large):
        grant.release()
    assert budget.used == 0


def test_a_grant_that_nobody_holds_is_given_back() -> None:
    budget = Budget(100)
    granted: list[str] = []
    first = [budget.hold(70)]
    second = asker(budget, 50, granted, "b")
    first.clear()
    assert (granted, budget.used, second.is_held) == (["b"], 50, True)


def test_grants_that_are_given_back_at_once_do_not_deepen_the_stack() -> None:
    budget = Budget(10)
    granted: list[int] = []

    def take(number: int) -> Grant:
        def run() -> None:
            granted.append(number)
            grant.release()

        grant = Grant(budget, 10)
        grant.take(run)
        return grant

    first = budget.hold(10)
    grants = [take(number) for number in range(20_000)]
    first.release()
    assert granted == list(range(20_000))
    assert (budget.used, len(grants)) == (0, 20_000)


@pytest.mark.parametrize("seed", range(20))
def test_random_grants_come_back_to_nothing(seed: int) -> None:
    rnd = random.Random(seed)
    budget, grants = Budget(100), list[Grant]()
    steps: list[Callable[[], object]] = [
        lambda: grants.append(asker(budget, rnd.randint(0, 150), [], "")),
        lambda: grants.append(budget.hold(rnd.randint(0, 20))),
        lambda: grants and grants[rnd.randrange(len(grants))].release(),
        lambda: grants and grants.pop(rnd.randrange(len(grants))),
    ]
    for _ in range(500):
        rnd.choice(steps)()
        assert budget.used >= sum(grant.count for grant in grants if grant.is_held)
    for grant in grants:
        grant.release()
    assert (budget.used, budget.is_short) == (0, False)
