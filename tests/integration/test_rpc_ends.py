"""Goal: nothing is left of a connection that is lost. Method: the objects that Python still knows,
with its collector switched off."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import capnp
from support.stock import stock_session
from support.wired import DIM, serving

from hybridps.rpc.connection import Connection
from hybridps.rpc.transport import Transport

KEYS = [3, 1]


def test_a_lost_connection_leaves_no_cycle(run: Any, tmp_path: Path) -> None:
    """Short-lived clients come by the thousand: what is left would wait for the collector."""

    def connections() -> int:
        # Not isinstance, which asks objects of other libraries for a class of theirs.
        return sum(type(o) in (Transport, Connection) for o in gc.get_objects())

    async def main() -> None:
        async with serving(tmp_path) as served, capnp.kj_loop():
            async with stock_session(served.path) as session:
                await session.hello(5)
            await asyncio.sleep(0.1)
            gc.collect()
            before = connections()
            gc.disable()
            try:
                for _ in range(5):
                    async with stock_session(served.path) as session:
                        await session.hello(5)
                        await session.lookup(served.table, KEYS, DIM)
                await asyncio.sleep(0.1)
                left = connections()
            finally:
                gc.enable()
            assert left <= before

    run(main())
