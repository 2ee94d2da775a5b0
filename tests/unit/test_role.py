"""Goal: a role is one thread's at a time, and a signal never leaves it taken. Method: threads that
count who is inside; alarms at random moments of claiming and leaving."""

import contextlib
import random
import signal
import threading
from typing import Any

from hybridps._core import Role


def test_one_at_a_time_and_free_again() -> None:
    role = Role()
    with role.claim() as first, role.claim() as second:
        assert (first, second, role.is_taken) == (True, False, True)
    assert not role.is_taken
    with contextlib.suppress(ValueError), role.claim() as is_mine:
        assert is_mine
        raise ValueError
    assert not role.is_taken


def test_threads_are_never_inside_together() -> None:
    role, inside, most, turns = Role(), [0], [0], [0]

    def work() -> None:
        for _ in range(3000):
            with role.claim() as is_mine:
                if is_mine:
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    turns[0] += 1
                    inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], inside[0], role.is_taken) == (1, 0, False)
    assert turns[0] >= 3000


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_signal_never_leaves_a_role_taken() -> None:
    role, rnd, cut = Role(), random.Random(1), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(2000):
            try:
                signal.setitimer(signal.ITIMER_REAL, rnd.uniform(5e-6, 100e-6))
                for _ in range(200):
                    with role.claim() as is_mine:
                        assert is_mine
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                cut += 1
            assert not role.is_taken
        assert cut > 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
