"""Engine work off the event loop: the only place of the server that leaves it.

A fixed number of threads, and a bound on what may wait for them: a caller beyond it waits its turn
in order of arrival, which stops its connection from being read and so pushes back to the client.
Calls so small that the hop costs more than the work run where they are.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

# A hop to a thread and back takes 40 to 70 us on a 2-core machine, about as long as moving this
# many bytes through a lookup. Below it a hop costs more than it frees.
INLINE_COST_MAX_BYTES = 64 << 10
# Work in the pool's queue per thread: enough that a thread never idles between two calls, and
# little enough that a cheap call waits behind few others.
QUEUED_PER_THREAD = 4
UNKNOWN_COST = 1 << 62

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Workers:
    """A bounded pool of engine threads, driven from one event loop."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hybridps-engine")
        self._places = asyncio.Semaphore(threads * (1 + QUEUED_PER_THREAD))
        self._busy = 0

    @property
    def busy(self) -> int:
        """Calls running in the pool or queued in it."""
        return self._busy

    async def run(self, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Runs `function` on an engine thread; waits while the pool and its queue are full.

        A caller that is cancelled stops waiting, but work that has begun is finished: it may
        have changed rows, and it holds its place until it is done.
        """
        await self._places.acquire()
        self._busy += 1
        try:
            call = self._pool.submit(function, *args, **kwargs)
        except BaseException:
            self._release()
            raise
        future = asyncio.wrap_future(call)
        # The place belongs to the work, not to the caller, who may give up before it is done.
        loop = asyncio.get_running_loop()
        call.add_done_callback(lambda _: _on_loop(loop, self._release))
        return await asyncio.shield(future)

    async def run_costing(
        self, cost_bytes: int, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Runs a call that moves `cost_bytes`: here if it is small, else on an engine thread."""
        if cost_bytes <= INLINE_COST_MAX_BYTES:
            return function(*args, **kwargs)
        return await self.run(function, *args, **kwargs)

    async def close(self) -> None:
        """Waits for all work that has begun, then ends the threads."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._pool.shutdown)

    def _release(self) -> None:
        self._busy -= 1
        self._places.release()


def _on_loop(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:  # The loop is closed: nobody waits for a place any more.
        return
