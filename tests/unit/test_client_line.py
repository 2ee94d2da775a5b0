"""Goal: every call has one outcome, in time; a push is applied once, in order, whatever connections
do; a call that is given up disturbs no other. Method: the line without sockets, with a clock that
the test turns, against a real store in this process: by hand, and with random steps beside sums."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.lined import DIM, Near, Store

import hybridps as hps
from hybridps import verbs
from hybridps.client.pending import Pending


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "data")
    yield store
    store.engine.close()


@pytest.fixture
def near(store: Store) -> Near:
    return Near(store)


def read(pending: Pending) -> float:
    ((rows, _),) = pending.reply()
    return float(rows[0, 0])


def test_calls_are_answered_over_one_connection(near: Near) -> None:
    met = near.submit(None)
    pushes = [near.push(), near.push()]
    seen = near.lookup()
    assert not any(pending.is_over for pending in (met, *pushes, seen))
    near.settle()
    assert met.is_over
    assert [pending.reply() for pending in pushes] == [False, False]
    assert (read(seen), near.value()) == (-2.0, -2.0)
    assert [len(near.fars), near.fars[0].asked] == [
        1,
        ["hello", "applyGradients", "applyGradients", "lookup"],
    ]
    assert not near.line.is_wanted


@pytest.mark.parametrize("lost_after", range(0, 2000, 37))
def test_a_push_is_applied_once_wherever_its_connection_breaks(near: Near, lost_after: int) -> None:
    pushes = [near.push() for _ in range(5)]
    near.open()
    for _ in range(3):
        near.send(lost_after)
        near.receive(lost_after // 3)
    near.cut()
    near.now_s += 1.0
    near.settle()
    assert [pending.reply() for pending in pushes] == [False] * 5
    assert near.value() == -5.0


def test_a_duplicate_that_is_no_echo_of_ours_is_told(near: Near) -> None:
    first = near.push()
    near.settle()
    near._number = 0  # As a client would whose session was pushed to before.
    again = near.push()
    near.settle()
    assert (first.reply(), again.reply(), near.value()) == (False, True, -1.0)


def test_a_call_given_up_in_line_is_never_sent(near: Near) -> None:
    kept, dropped, after = near.push(), near.push(), near.push()
    near.line.give_up(dropped)
    near.settle()
    assert (kept.reply(), after.reply(), near.value()) == (False, False, -2.0)


def test_a_call_given_up_after_it_was_sent_disturbs_nobody(near: Near) -> None:
    calls_made = [near.lookup() for _ in range(3)]
    near.open()
    near.send()
    near.receive()
    near.send()
    near.line.give_up(calls_made[1])
    near.settle()
    assert [pending.is_over for pending in calls_made] == [True] * 3
    assert (read(calls_made[0]), read(calls_made[2]), len(near.fars)) == (0.0, 0.0, 1)


def test_what_is_half_sent_goes_on_without_the_callers_arrays(near: Near) -> None:
    near.submit(None)
    near.settle()
    keys = np.arange(1, 3001, dtype=np.uint64)
    gradients = np.ones((3000, DIM), np.float32)
    half = near.submit(verbs.ApplyGradients([(near.store.table, keys, gradients)], None))
    near.send(5000)
    near.line.give_up(half)
    # They are the caller's again.
    gradients[:] = np.nan
    keys[:] = 0
    behind = near.lookup([3000])
    near.settle()
    assert (read(behind), near.value(0), len(near.fars)) == (-1.0, 0.0, 1)


def test_deadlines_end_calls_and_say_what_was_the_matter(near: Near) -> None:
    nowhere = near.lookup(timeout=1.0)
    near.line.lost(ConnectionRefusedError("refused"), near.now_s)
    near.wait(0.99)
    assert not nowhere.is_over
    near.wait(0.02)
    with pytest.raises(hps.UnavailableError, match=r"within 1 s: refused; start it"):
        nowhere.reply()
    near.submit(None)
    near.settle()
    short, long = near.push(timeout=0.1), near.push(timeout=10)
    near.send()
    near.wait(0.11)
    with pytest.raises(hps.DeadlineError, match=r"apply_gradients at hps://far:1.*0\.1 s"):
        short.reply()
    assert not long.is_over
    near.settle()
    assert (long.reply(), near.value(), len(near.fars)) == (False, -2.0, 1)


def test_a_peer_that_falls_silent_is_asked_and_then_replaced(near: Near) -> None:
    near.submit(None)
    near.settle()
    pushed = near.push(timeout=10)
    near.send()
    near.wait(2.4)
    assert not near.line.has_unsent
    near.wait(0.2)
    assert near.line.has_unsent, "it is asked for a sign of life"
    near.send()
    near.wait(2.4)
    assert near.line.wire is not None
    near.wait(0.2)
    assert near.line.wire is None
    near.settle()
    assert (pushed.reply(), near.value(), len(near.fars)) == (False, -1.0, 2)


def test_a_server_that_is_slow_but_alive_keeps_its_connection(near: Near) -> None:
    near.submit(None)
    near.settle()
    pushed = near.push(timeout=30)
    near.send()
    assert near.far is not None
    late, near.far.replies = near.far.replies, b""
    for _ in range(25):
        near.wait(1.0)
        near.send()
        near.receive()
    near.far.replies += late
    near.settle()
    assert (pushed.reply(), len(near.fars)) == (False, 1)


def test_silence_is_noticed_over_calls_that_are_each_too_short(near: Near) -> None:
    near.submit(None)
    near.settle()
    for _ in range(12):
        near.lookup(timeout=0.05)
        near.send()
        near.wait(0.051)
    assert near.line.wire is None
    last = near.lookup(timeout=1.0)
    near.settle()
    assert read(last) == 0.0


def test_a_hello_that_is_never_answered_is_tried_again(near: Near) -> None:
    waiting = near.lookup(timeout=8.0)
    near.open()
    near.send()
    near.wait(1.9)
    assert near.line.wire is not None
    near.wait(0.2)
    assert near.line.wire is None
    near.wait(1.0)
    near.settle()
    assert (read(waiting), len(near.fars)) == (0.0, 2)


def test_a_server_that_refuses_is_not_asked_again_by_itself(near: Near) -> None:
    near.store.refusal = "UnavailableError: client 'a' was taken over"
    refused = [near.lookup(), near.push()]
    near.settle()
    for pending in refused:
        with pytest.raises(hps.UnavailableError, match="taken over"):
            pending.reply()
    near.now_s += 100
    near.settle()
    assert len(near.fars) == 1
    near.store.refusal = ""
    again = near.push()
    near.settle()
    assert (again.reply(), near.value()) == (False, -1.0)


def test_a_driver_that_is_interrupted_leaves_a_line_that_begins_anew(near: Near) -> None:
    pushes = [near.push(), near.push()]
    near.open()
    near.send()
    near.receive()

    def interrupted() -> None:
        with near.line as line:
            line.take(10, 0.0)  # These bytes are lost.
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with near.line:
        assert near.line.wire is None
    near.settle()
    assert ([p.reply() for p in pushes], near.value()) == ([False, False], -2.0)


def test_a_call_that_cannot_be_encoded_stops_nobody(near: Near) -> None:
    near.submit(None)
    near.settle()
    fractions: Any = np.array([1.5])
    wrong = near.submit(verbs.Lookup([(near.store.table, fractions)], False))
    behind = near.lookup()
    near.settle()
    with pytest.raises(hps.HybridPSError, match="lookup could not be sent"):
        wrong.reply()
    assert (read(behind), len(near.fars)) == (0.0, 1)


def test_a_long_message_that_the_peer_takes_slowly_is_no_silence(near: Near) -> None:
    near.submit(None)
    near.settle()
    keys = np.arange(1, 10_001, dtype=np.uint64)
    gradients = np.ones((10_000, DIM), np.float32)
    call = verbs.ApplyGradients([(near.store.table, keys, gradients)], None)
    pushed = near.submit(call, 40.0)
    for _ in range(30):
        near.send(4000)
        near.wait(1.0)
    assert len(near.fars) == 1
    near.settle()
    assert (pushed.reply(), len(near.fars)) == (False, 1)


def test_a_closed_line_fails_all(near: Near) -> None:
    waiting = near.lookup()
    near.line.close()
    after = near.lookup()
    for pending, text in ((waiting, "was closed while"), (after, "is closed")):
        with pytest.raises(hps.UnavailableError, match=text):
            pending.reply()


class Model:
    """Pushes and reads in the order in which they were submitted."""

    def __init__(self, near: Near, rnd: random.Random) -> None:
        self.near = near
        self.rnd = rnd
        self.order: list[tuple[str, Pending, bool]] = []

    def step(self) -> None:
        near, rnd = self.near, self.rnd
        match rnd.randrange(10):
            case 0 | 1:
                self.order.append(("push", near.push(timeout=rnd.choice([0.5, 5.0])), False))
            case 2 | 3:
                self.order.append(("read", near.lookup(timeout=rnd.choice([0.5, 5.0])), False))
            case 4 | 5:
                near.open()
                near.send(rnd.choice([10, 200, 5000]))
            case 6 | 7:
                near.receive(rnd.choice([10, 200, 5000]))
            case 8:
                near.wait(rnd.choice([0.001, 0.1, 0.5]))
            case 9 if rnd.random() < 0.3:
                near.cut()
            case 9 if self.order and rnd.random() < 0.5:
                kind, pending, _ = self.order[-1]
                near.line.give_up(pending)
                self.order[-1] = (kind, pending, True)

    def check(self) -> None:
        """A read sees every push before it that was acknowledged, and none submitted later; but
        when it was sent again, it may see those that had been sent behind it.
        """
        sure = begun = 0
        pushes = sum(kind == "push" for kind, _, _ in self.order)
        for kind, pending, is_given_up in self.order:
            ok = not is_given_up and pending.is_over and pending.error is None
            if kind == "push":
                begun += 1
                sure += ok
            elif ok:
                assert sure <= -read(pending) <= (begun if pending.sends == 1 else pushes)
        assert sure <= -self.near.value() <= begun


@pytest.mark.parametrize("seed", range(60))
def test_any_steps_apply_pushes_once_and_in_order(near: Near, seed: int) -> None:
    model = Model(near, random.Random(seed))
    for _ in range(300):
        model.step()
    near.now_s += 2.0
    near.settle()
    for _ in range(20):
        near.wait(0.3)
        near.settle()
    assert all(pending.is_over for _, pending, _ in model.order)
    model.check()


def test_what_a_server_does_not_know_is_not_sent_to_it(near: Near) -> None:
    """Of an older server, by its list of features, or without one."""
    near.store.features = ["lookup"]
    refused = near.submit(verbs.Size(near.store.table))
    seen = near.lookup()
    near.settle()
    with pytest.raises(hps.ConfigError, match=r"hybridps 0\.0 .*'size'.*hybridps \d.*newer server"):
        refused.reply()
    assert read(seen) == 0.0
    assert near.fars[0].asked == ["hello", "lookup"]


@dataclass(frozen=True, slots=True)
class Later(verbs.Size):
    """A verb that servers once did not have."""

    VERB = "later"


def test_a_server_without_a_list_knows_the_first_verbs(near: Near) -> None:
    near.store.features = []
    refused, seen = near.submit(Later(near.store.table)), near.lookup()
    near.settle()
    with pytest.raises(hps.ConfigError, match="'later'"):
        refused.reply()
    assert read(seen) == 0.0


@dataclass(frozen=True, slots=True)
class Optioned(verbs.Flush):
    """A verb that has learnt something."""

    def needs(self) -> tuple[str, ...]:
        return (*super(Optioned, self).needs(), "thoroughly")


def test_a_field_that_a_server_does_not_know_is_a_reason_too(near: Near) -> None:
    refused = near.submit(Optioned())
    near.settle()
    with pytest.raises(hps.ConfigError, match="does not know 'thoroughly', which"):
        refused.reply()
    assert near.fars[0].asked == ["hello"]
