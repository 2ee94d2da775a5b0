"""Goal: waits grow, stay bounded and differ; deadlines end."""

import itertools
import math
import socket

import pytest

import hybridps as hps
from hybridps.client.retry import FOREVER_S, LONGEST_DELAY_S, Deadline, check_timeout, delays
from hybridps.client.urls import Address


def test_waits_have_full_jitter_below_a_growing_bound() -> None:
    runs = [list(itertools.islice(delays(), 12)) for _ in range(200)]
    bounds = [min(0.02 * 2**n, LONGEST_DELAY_S) for n in range(12)]
    for n, bound in enumerate(bounds):
        waits = [run[n] for run in runs]
        assert 0 <= min(waits) < 0.2 * bound
        assert 0.8 * bound < max(waits) <= bound


def test_deadlines() -> None:
    deadline = Deadline(10, 5.0)
    assert (deadline.end_s, deadline.timeout) == (15.0, 10)
    assert "lookup at hps://a:1" in str(deadline.error("lookup", Address("a", 1)))
    assert check_timeout(None, 3) == 3
    assert check_timeout(2, 3) == 2
    for forever in (math.inf, 1e300):
        assert check_timeout(forever, 3) == FOREVER_S
    for wrong in (-1, 0, math.nan, True, "1"):
        with pytest.raises(hps.BadInputError):
            check_timeout(wrong, 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "cause", "remedy"),
    [
        (Address("a", 1), ConnectionRefusedError("refused"), "hybridps.server --listen a:1"),
        (Address("/s", None), FileNotFoundError("no file"), "hybridps.server --unix /s"),
        (Address("/s", None), PermissionError("denied"), "write to the socket"),
        (Address("a", 1), socket.gaierror(-2, "unknown"), "correct the URL"),
        (Address("a", 1), TimeoutError("timed out"), "see its log"),
        (Address("a", 1), ConnectionResetError("reset"), "see its log"),
        (Address("a", 1), "it closed the connection", "see its log"),
    ],
)
def test_only_where_none_is_there_a_server_is_to_be_started(
    address: Address, cause: object, remedy: str
) -> None:
    text = str(Deadline(1, 0.0).unavailable(address, cause))
    assert f"{address} within 1 s: {cause}; " in text
    assert remedy in text
    is_absent = isinstance(cause, (ConnectionRefusedError, FileNotFoundError))
    assert ("start it" in text) == is_absent
