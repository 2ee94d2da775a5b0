"""Goal: which settings make a worker, how its pushes are numbered, and that a copy of it is none.
Method: no server; sessions and pickles by themselves."""

import pickle
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps import verbs
from hybridps.client.remote import RemoteTransport
from hybridps.client.session import Session
from hybridps.client.urls import Address
from hybridps.client.worker import STALENESS_MAX, Numbers, Worker, kept, worker_of
from hybridps.security.credentials import NOBODY
from hybridps.verbs.calls import ServerInfo

KEYS = np.array([1, 2], np.uint64)
PUSH = verbs.ApplyGradients([(1, KEYS, np.ones((2, 2), np.float32))], None)


def server(last_round: int) -> ServerInfo:
    return ServerInfo("1", 0, 1, 1 << 20, 1000, last_round=last_round)


def test_settings_of_a_worker() -> None:
    assert worker_of("async", None, None) is None
    assert worker_of("sync", 3, 2) == Worker(3, 2, 0)
    assert worker_of("sync", 1, 0, STALENESS_MAX) == Worker(1, 0, STALENESS_MAX)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (("often", 2, 0), "mode is 'often'"),
        (("async", 2, None), 'workers is 2 with mode="async"'),
        (("async", None, 0), "rank is 0"),
        (("async", None, None, 1), "staleness is 1"),
        (("sync", None, 0), "workers is None.*give 1 to"),
        (("sync", 0, 0), "workers is 0"),
        (("sync", True, 0), "workers is True"),
        (("sync", 2, None), "rank is None.*give 0 to 1"),
        (("sync", 2, 2), "rank is 2.*give 0 to 1"),
        (("sync", 2, -1), "rank is -1"),
        (("sync", 2, 0, -1), "staleness is -1"),
        (("sync", 2, 0, STALENESS_MAX + 1), "staleness is 33"),
    ],
)
def test_settings_that_make_no_worker(settings: Any, match: str) -> None:
    with pytest.raises(hps.ConfigError, match=match):
        worker_of(*settings)


def test_a_store_in_this_process_has_no_workers(tmp_path: Any) -> None:
    with pytest.raises(hps.ConfigError, match=r"sync.*belongs to servers"):
        hps.connect(f"local:{tmp_path}", mode="sync", workers=2, rank=0)
    assert not list(tmp_path.iterdir())


def test_rounds_go_on_from_the_last_that_all_servers_have_applied() -> None:
    numbers = Numbers()
    assert not numbers.is_round_known
    numbers.met([server(7), server(6)])
    assert [numbers.next_round(), numbers.next_push(), numbers.next_round()] == [7, 1, 8]
    numbers.lose()
    assert not numbers.is_round_known
    numbers.met([server(8), server(8)])
    assert [numbers.next_round(), numbers.next_push()] == [9, 2]


def test_a_session_asks_before_its_first_round_and_after_one_that_failed() -> None:
    session = Session([Address("a", 1)], "me", NOBODY, worker=Worker(3, 1))
    lookup = verbs.Lookup([(1, KEYS)], False)
    assign = verbs.Assign([(1, KEYS, np.ones((2, 2), np.float32))])
    assert session.is_together(PUSH)
    assert not any(session.is_together(call) for call in (lookup, assign, None))
    greeting = session.greeting
    assert greeting is not None
    assert (greeting.client_id, greeting.worker) == ("me", (3, 1))
    session.met([server(4)])
    assert session.greeting is None
    calls = (PUSH, assign, PUSH, lookup)
    numbers = [session.pending([call], 1.0, 0.0)[0].number for call in calls]
    assert numbers == [5, 1, 6, 0], "rounds, and pushes of its own"
    session.lose_round()
    assert session.greeting == greeting


def test_a_client_that_pushes_alone_numbers_all_its_pushes() -> None:
    session = Session([Address("a", 1)], None, NOBODY)
    assert session.greeting is None
    assert not session.is_together(PUSH)
    assert [session.pending([PUSH], 1.0, 0.0)[0].number for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("how", ["pickle", "fork"])
def test_a_copy_of_a_worker_does_not_push(how: str) -> None:
    transport = RemoteTransport([Address("127.0.0.1", 1)], "me", 1.0, worker=Worker(2, 0))
    if how == "pickle":
        transport = pickle.loads(pickle.dumps(transport))  # noqa: S301 - our own bytes
    else:
        transport.reset_after_fork()
    with pytest.raises(hps.ConfigError, match="copy of a client"):
        transport.perform([(0, PUSH)], 1.0)
    transport.close()


def test_what_is_sent_later_has_arrays_of_its_own() -> None:
    keys, rows = KEYS.copy(), np.ones((2, 2), np.float32)
    copy = kept(verbs.ApplyGradients([(1, keys, rows)], 5))
    keys[:], rows[:] = 0, 0
    ((table, kept_keys, kept_rows),) = copy.tables
    assert table == 1
    np.testing.assert_array_equal(kept_keys, KEYS)
    np.testing.assert_array_equal(kept_rows, np.ones((2, 2)))
    assert copy.of([]) == verbs.ApplyGradients([], 5)
