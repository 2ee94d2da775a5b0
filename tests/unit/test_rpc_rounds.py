"""Goal: what workers push together is applied once, when all have pushed, in the order of rounds,
whatever is lost, sent again or restarted. Method: each rule by itself; then random workers, losses
and restarts beside a store that is a set of numbers."""

import random
from typing import Any

import pytest

from hybridps.errors import BadInputError, ConfigError
from hybridps.rpc.rounds import LATE_S, OPEN_MAX, Rounds


def of(workers: int, **client_ids: str) -> Rounds[Any]:
    """Rounds whose workers are there; each by a connection and in a session of its own."""
    rounds: Rounds[Any] = Rounds()
    for rank in range(workers):
        rounds.enter(f"c{rank}", workers, rank, 10 + rank, client_ids.get(f"w{rank}", ""), 0)
    return rounds


def bring(rounds: Rounds[Any], rank: int, number: int, call: str, step: int | None = None) -> bool:
    return rounds.bring(rank, number, step, [7], call, 0.0)


def test_a_round_is_due_when_all_have_pushed_in_the_order_of_ranks() -> None:
    rounds = of(3)
    for rank in (2, 0):
        assert bring(rounds, rank, 1, f"a{rank}")
        assert rounds.due() is None
    assert bring(rounds, 1, 1, "a1")
    assert rounds.due() == (1, ["a0", "a1", "a2"])
    assert rounds.due() is None, "one at a time"
    rounds.ended(is_applied=True)
    assert (rounds.last, rounds.waiting()) == (1, [])
    assert not bring(rounds, 1, 1, "a1 again"), "acknowledged, not applied twice"


def test_rounds_are_applied_in_their_order_and_one_that_failed_may_be_pushed_again() -> None:
    rounds = of(2)
    for number in (1, 2, 3):
        assert bring(rounds, 0, number, f"a{number}")
    assert bring(rounds, 1, 1, "b1")
    assert bring(rounds, 1, 2, "b2")
    assert rounds.due() == (1, ["a1", "b1"])
    rounds.ended(is_applied=False)
    assert rounds.last == 0
    assert rounds.due() == (2, ["a2", "b2"]), "round 1 waits for nobody any more"


def test_a_later_round_waits_for_an_earlier_one() -> None:
    rounds = of(2)
    for number in (1, 2):
        bring(rounds, 0, number, f"a{number}")
    bring(rounds, 1, 2, "b2")
    assert rounds.due() is None
    bring(rounds, 1, 1, "b1")
    assert rounds.due() == (1, ["a1", "b1"])
    rounds.ended(is_applied=True)
    assert rounds.due() == (2, ["a2", "b2"])


def test_a_lost_worker_leaves_nothing_and_comes_back() -> None:
    rounds = of(2)
    bring(rounds, 0, 1, "a")
    assert rounds.leave("c0") == ["a"]
    bring(rounds, 1, 1, "b")
    assert rounds.due() is None
    assert rounds.enter("c9", 2, 0, 10, "", 0) == []
    bring(rounds, 0, 1, "a again")
    assert rounds.due() == (1, ["a again", "b"])
    assert rounds.leave("c9") == [], "it is being applied"


def test_what_came_over_an_old_connection_is_replaced() -> None:
    rounds = of(1)
    rounds.enter("c1", 1, 0, 10, "", 0)
    assert rounds.leave("c0") == [], "the old connection ends after the new one began"
    bring(rounds, 0, 1, "a")
    assert rounds.due() == (1, ["a"])


def test_a_push_that_nobody_waits_for_is_withdrawn() -> None:
    rounds = of(2)
    bring(rounds, 0, 1, "a")
    with pytest.raises(BadInputError, match="rank 0 has pushed to round 1 already"):
        bring(rounds, 0, 1, "other")
    rounds.withdraw("a")
    assert rounds.waiting() == []
    bring(rounds, 0, 1, "other")
    bring(rounds, 1, 1, "b")
    assert rounds.due() == (1, ["other", "b"])
    with pytest.raises(BadInputError, match="round 1 is being applied"):
        bring(rounds, 0, 1, "late")


def test_who_does_not_fit_is_refused() -> None:
    rounds = of(2, w1="second")
    with pytest.raises(ConfigError, match="rank is 3 of 3 workers"):
        rounds.enter("x", 3, 3, 99, "", 0)
    with pytest.raises(ConfigError, match="rank 2 of 3 workers meets others that are 2"):
        rounds.enter("x", 3, 2, 99, "", 0)
    with pytest.raises(ConfigError, match="rank 0 of 2 workers is there already"):
        rounds.enter("x", 2, 0, 99, "", 0)
    with pytest.raises(ConfigError, match="rank 1 of 2 workers is there already"):
        rounds.enter("x", 2, 1, 99, "third", 0)
    bring(rounds, 1, 1, "b")
    assert rounds.enter("x", 2, 1, 99, "second", 0) == ["b"], "its own name comes back"
    for key in ("c0", "x"):
        rounds.leave(key)
    assert rounds.enter("x", 3, 2, 99, "", 0) == [], "nobody is there: others may begin"


def test_workers_push_the_same_steps() -> None:
    rounds = of(2)
    bring(rounds, 0, 1, "a", step=4)
    with pytest.raises(BadInputError, match="rank 1 pushes step 5, and rank 0 step 4"):
        bring(rounds, 1, 1, "b", step=5)
    bring(rounds, 1, 1, "b", step=4)
    assert rounds.due() == (1, ["a", "b"])
    rounds.ended(is_applied=True)
    with pytest.raises(BadInputError, match="step is 4, but rank 0 has pushed step 4"):
        bring(rounds, 0, 2, "a", step=4)
    assert rounds.bring(0, 2, 4, [8], "a", 0.0), "another table"


def test_a_worker_that_came_back_makes_its_steps_again_without_the_others() -> None:
    rounds = of(2, w1="second")
    for number, step in ((1, 4), (2, 5)):
        for rank in (0, 1):
            bring(rounds, rank, number, f"{rank}", step=step)
        assert rounds.due() is not None
        rounds.ended(is_applied=True)
    rounds.enter("x", 2, 1, 99, "second", 0)
    bring(rounds, 0, 3, "a", step=6)
    assert not bring(rounds, 1, 3, "b", step=4)
    assert not bring(rounds, 1, 3, "b", step=5)
    assert rounds.bring(1, 3, 6, [7, 8], "b", 0.0)
    assert rounds.due() == (3, ["a", "b"])


def test_what_waits_is_bounded_and_told_once() -> None:
    rounds = of(2)
    for number in range(1, OPEN_MAX + 1):
        bring(rounds, 0, number, f"a{number}")
    with pytest.raises(BadInputError, match=r"65th that waits.* applied is 0"):
        bring(rounds, 0, OPEN_MAX + 1, "a")
    assert rounds.late(LATE_S / 2) == {}
    late = rounds.late(LATE_S)
    assert late == {number: [1] for number in range(1, OPEN_MAX + 1)}
    assert rounds.late(2 * LATE_S) == {}
    assert len(rounds.clear()) == OPEN_MAX
    assert rounds.waiting() == []


class World:
    """Workers that push 1, 2, 3 ... as a client does, a server, and a store that outlives it."""

    def __init__(self, workers: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.workers = workers
        # By round, whose pushes were applied.
        self.store: dict[int, list[tuple[int, int]]] = {}
        self.connections = 0
        self.keys = [""] * workers
        self.done = [0] * workers
        self.asked = [False] * workers
        self.restart()

    def restart(self) -> None:
        """The server is gone and comes back; all connections are lost."""
        self.rounds: Rounds[tuple[int, int]] = Rounds()
        for rank in range(self.workers):
            self.reconnect(rank)

    def reconnect(self, rank: int) -> None:
        """What was asked and not answered is sent again."""
        self.rounds.leave(self.keys[rank])
        self.connections += 1
        self.keys[rank] = f"c{self.connections}"
        last = max(self.store, default=0)
        self.rounds.enter(self.keys[rank], self.workers, rank, 10 + rank, "", last)
        if self.asked[rank]:
            self.ask(rank)

    def ask(self, rank: int) -> None:
        self.asked[rank] = True
        number = self.done[rank] + 1
        if not self.rounds.bring(rank, number, None, [1], (rank, number), 0.0):
            self.answer(rank, number)

    def answer(self, rank: int, number: int) -> None:
        assert any((rank, number) in calls for calls in self.store.values()), "not applied"
        if self.asked[rank] and number == self.done[rank] + 1:
            self.done[rank], self.asked[rank] = number, False

    def act(self) -> None:
        rank = self.random.randrange(self.workers)
        match self.random.randrange(8):
            case 0:
                self.reconnect(rank)
            case 1 if not self.random.randrange(4):
                self.restart()
            case _ if not self.asked[rank]:
                self.ask(rank)
        due = self.rounds.due()
        if due is None:
            return
        number, calls = due
        is_applied = self.random.randrange(5) > 0
        if is_applied and number not in self.store:
            self.store[number] = list(calls)
        if not self.random.randrange(6):
            self.restart()  # Before anybody was answered.
            return
        self.rounds.ended(is_applied=is_applied)
        for of_rank, of_number in calls:
            if not is_applied:
                self.ask(of_rank)
            elif self.random.randrange(3):
                self.answer(of_rank, of_number)
            else:
                self.reconnect(of_rank)  # The answer was lost.


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_every_push_is_applied_once_whatever_is_lost(workers: int) -> None:
    for seed in range(40):
        world = World(workers, seed)
        for _ in range(300):
            world.act()
        assert len(world.store) > 10
        for number, calls in world.store.items():
            assert calls == [(rank, number) for rank in range(workers)], "whole, and in order"
        assert sorted(world.store) == list(range(1, len(world.store) + 1))
