"""Engine work off the event loop: the only place of the server that leaves it.

Each lane has a fixed number of threads, and a bound on what may wait for them: a caller beyond it
waits its turn in order of arrival, which stops its connection from being read and so pushes back
to the client.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from hybridps.verbs.kinds import Lane

# A hop to a thread and back takes 60 us on uvloop and 100 us on asyncio (p50, 2 busy cores), about
# as long as a lookup takes to move this many bytes. One that moves less is tried on the loop.
INLINE_COST_MAX_BYTES = 64 << 10
# Work in a lane's queue per thread: enough that a thread never idles between two calls, and little
# enough that a cheap call waits behind few others.
QUEUED_PER_THREAD = 4
# Operators' calls may each wait for the device for long, and few are made at a time.
ORDERS_THREADS = 4
LOOKS_THREADS = 2
# Followers may be many, and take what is left by those that train and read.
CHANGES_THREADS = 2
# One sample is taken at a time; while it waits a page can be made of the last one.
SAMPLES_THREADS = 2

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Workers:
    """The lanes of a server with that many engine threads, driven from one event loop."""

    def __init__(self, threads: int) -> None:
        sizes = {Lane.LOOKS: LOOKS_THREADS, Lane.ORDERS: ORDERS_THREADS}
        sizes |= {Lane.SAMPLES: SAMPLES_THREADS, Lane.CHANGES: CHANGES_THREADS}
        self._pools = {lane: _Pool(lane.value, sizes.get(lane, threads)) for lane in Lane}

    @property
    def busy(self) -> dict[Lane, int]:
        """Calls running in each lane or queued in it."""
        return {lane: pool.busy for lane, pool in self._pools.items()}

    async def run(
        self, lane: Lane, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Runs `function` on a thread of the lane; waits while the lane and its queue are full.

        A caller that is cancelled stops waiting, but work that has begun is finished: it may
        have changed rows, and it holds its place until it is done.
        """
        return await self._pools[lane].run(partial(function, *args, **kwargs))

    async def close(self) -> None:
        """Waits for all work that has begun, then ends the threads."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))


class _Pool:
    """The threads of one lane; started as they are needed."""

    def __init__(self, name: str, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=f"hybridps-{name}")
        self._places = asyncio.Semaphore(threads * (1 + QUEUED_PER_THREAD))
        self.busy = 0

    async def run(self, work: Callable[[], _T]) -> _T:
        await self._places.acquire()
        self.busy += 1
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        try:
            self._pool.submit(self._work, future, work)
        except BaseException:
            self._release()
            raise
        return await future

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def _work(self, future: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        """On an engine thread: the work, then one wake-up of the loop with what came of it."""
        try:
            done = partial(self._done, future, work(), None)
        except BaseException as error:  # noqa: BLE001 - raised again where the caller waits
            done = partial(self._done, future, None, error)
        try:
            future.get_loop().call_soon_threadsafe(done)
        except RuntimeError:
            return  # The loop is closed: nobody waits any more.

    def _done(
        self, future: asyncio.Future[Any], result: object, error: BaseException | None
    ) -> None:
        self._release()
        if future.cancelled():
            return  # The caller gave up.
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    def _release(self) -> None:
        self.busy -= 1
        self._places.release()
