"""The asyncio twin of `hybridps`: the same verbs, awaitable.

    async with hybridps.aio.connect("hps://127.0.0.1:7440") as ps:
        rows = await ps.table("item").lookup(keys, timeout=0.05)

Many calls may be in flight on one connection. `ps.table(name)` is not awaited: an absent table
raises at its first verb; `await table.size()` stands for `len`, `async for` walks `table.keys()`.
"""

from hybridps.client.aio import ParameterServer, Table
from hybridps.client.connect import connect_async as connect

__all__ = ["ParameterServer", "Table", "connect"]
