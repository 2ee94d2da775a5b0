"""Cold verbs that a replica answers in its own way: of tables that have not arrived, and of what
its store does not say.
"""

import asyncio
from typing import Any

import numpy as np

from hybridps.errors import TableNotFoundError
from hybridps.replica.follower import Follower
from hybridps.verbs.calls import Call, Site
from hybridps.verbs.changes import NowOf
from hybridps.verbs.listing import KeysOf, Size
from hybridps.verbs.open_table import OpenTable
from hybridps.verbs.tables import ListTables


class Answers:
    """Of one follower. Asked from the server's event loop."""

    def __init__(self, follower: Follower, site: Site) -> None:
        self._follower = follower
        self._site = site

    async def answer(self, call: Call[Any]) -> Any:
        """None: the store is to be asked, as on any server.

        Raises: UnavailableError for what has not arrived, where the followed are away.
        """
        if isinstance(call, OpenTable):
            return self._opened(call.name)
        if isinstance(call, ListTables):
            self._follower.check_met()
        elif isinstance(call, NowOf):
            return await self._now(call)
        elif isinstance(call, Size):
            sizes = await self._follower.ask_each(call.table, Size)
            return None if sizes is None else sum(sizes)
        elif isinstance(call, KeysOf):
            return await self._keys(call.table, call.bucket)
        return None

    def _opened(self, name: str) -> Any:
        opened = self._follower.opened(name)
        if opened is None:
            self._follower.check_met()
            raise TableNotFoundError(
                f"table {name!r} does not exist; create it on the server that this one follows"
            )
        return opened

    async def _now(self, call: NowOf) -> Any:
        """Who follows a replica meets a table when all of it is there."""
        arriving = self._follower.arriving
        now = await asyncio.to_thread(call.run, self._site)
        for name in [name for name, table in now.tables.items() if arriving(table.id)]:
            del now.tables[name]
        return now

    async def _keys(self, table: int, bucket: int) -> Any:
        """Of every server those of the same buckets: none has what another has."""
        told = await self._follower.ask_each(table, lambda there: KeysOf(there, bucket))
        if told is None:
            return None
        return np.concatenate([keys for keys, _ in told]), told[0][1]
