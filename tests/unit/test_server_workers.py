"""Goal: work leaves the loop, in bounded number and fair order. Method: functions that
block on events, counted."""

import asyncio
import threading
import time

import pytest

from hybridps.server.workers import QUEUED_PER_THREAD, Workers
from hybridps.verbs import VERBS
from hybridps.verbs.kinds import Lane

READS = Lane.READS


async def test_work_runs_off_the_loop_and_returns_or_raises() -> None:
    workers = Workers(2)
    assert await workers.run(READS, threading.get_ident) != threading.get_ident()
    assert await workers.run(READS, int, "ff", base=16) == 255
    with pytest.raises(ZeroDivisionError):
        await workers.run(READS, lambda: 1 // 0)
    await workers.close()


async def test_the_loop_stays_free_while_threads_are_busy() -> None:
    workers, release = Workers(1), threading.Event()
    call = asyncio.create_task(workers.run(READS, release.wait, 10))
    await asyncio.sleep(0.01)
    before = time.monotonic()
    await asyncio.sleep(0)
    assert time.monotonic() - before < 1
    release.set()
    assert await call
    await workers.close()


async def test_what_may_wait_is_bounded_and_served_in_order() -> None:
    workers, release, begun = Workers(1), threading.Event(), []

    def work(number: int) -> int:
        begun.append(number)
        release.wait(10)
        return number

    places = 1 + QUEUED_PER_THREAD
    calls = [asyncio.create_task(workers.run(READS, work, n)) for n in range(places + 5)]
    await asyncio.sleep(0.05)
    assert workers.busy[READS] == places
    assert begun == [0]
    release.set()
    assert await asyncio.gather(*calls) == list(range(places + 5))
    assert begun == list(range(places + 5))
    await asyncio.sleep(0.01)
    assert workers.busy[READS] == 0
    await workers.close()


async def test_a_cancelled_caller_leaves_running_work_alone_and_keeps_its_place() -> None:
    workers, release, done = Workers(1), threading.Event(), []

    def work() -> None:
        release.wait(10)
        done.append(True)

    call = asyncio.create_task(workers.run(READS, work))
    await asyncio.sleep(0.02)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert workers.busy[READS] == 1
    release.set()
    await workers.close()
    await asyncio.sleep(0.01)
    assert done == [True]
    assert workers.busy[READS] == 0


async def test_a_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    workers, release = Workers(1), threading.Event()
    full = [
        asyncio.create_task(workers.run(READS, release.wait, 10))
        for _ in range(1 + QUEUED_PER_THREAD)
    ]
    await asyncio.sleep(0.02)
    waiter = asyncio.create_task(workers.run(READS, int))
    follower = asyncio.create_task(workers.run(READS, int))
    await asyncio.sleep(0)
    waiter.cancel()
    release.set()
    assert await follower == 0
    await asyncio.gather(*full)
    await workers.close()


async def test_close_waits_for_work_that_has_begun() -> None:
    workers, done = Workers(1), []

    def work() -> None:
        time.sleep(0.05)
        done.append(True)

    call = asyncio.create_task(workers.run(READS, work))
    await asyncio.sleep(0.01)
    await workers.close()
    assert done == [True]
    await call


@pytest.mark.parametrize("busy", Lane)
async def test_a_lane_waits_for_no_other(busy: Lane) -> None:
    workers, release = Workers(1), threading.Event()
    held = [asyncio.create_task(workers.run(busy, release.wait, 30)) for _ in range(40)]
    await asyncio.sleep(0.01)
    others = [lane for lane in Lane if lane is not busy]
    work = [workers.run(lane, threading.get_ident) for lane in others]
    assert len(set(await asyncio.wait_for(asyncio.gather(*work), 20))) == len(others)
    release.set()
    await asyncio.gather(*held)
    await workers.close()


def test_every_verb_has_the_lane_of_what_it_may_wait_for() -> None:
    def of(lane: Lane) -> set[str]:
        return {name for name, verb in VERBS.items() if verb.LANE is lane}

    waits_for_room = {
        "lookupOrInsert",
        "applyGradients",
        "assign",
        "scatter",
        "remove",
        "importRows",
    }
    assert of(Lane.PUSHES) == waits_for_room
    assert of(Lane.READS) == {"lookup", "lookupPooled", "inspect", "statistics"}
    looks = {"prefetch", "hello", "table", "tables", "size", "stats", "tableStats", "staleness"}
    assert of(Lane.LOOKS) == looks
    assert not of(Lane.SAMPLES)
