"""Checkpoints that a server makes by itself: one every so often, and old ones go.

The date of the newest in the directory counts, so a restart neither hastens nor delays the next.
What fails is told in the log and tried again; calls wait for none of it.
"""

import asyncio
import json
import secrets
import time
from typing import Any, Final

from hybridps import _core
from hybridps.checkpoints import Checkpoint, checkpoints, prune_checkpoints
from hybridps.config import ServerConfig
from hybridps.errors import HybridPSError
from hybridps.server.logs import Logger
from hybridps.server.workers import Workers
from hybridps.verbs.kinds import Lane

# Between two questions after a job.
LOOK_S: Final = 0.25
# After a failure, if that is sooner than the next is due.
RETRY_S: Final = 60.0

log = Logger("hybridps.server")


class Schedule:
    """Makes checkpoints of a store while it runs."""

    def __init__(self, store: _core.Store, workers: Workers, config: ServerConfig) -> None:
        self._store = store
        self._workers = workers
        self._path = "" if config.checkpoint_path is None else str(config.checkpoint_path)
        self._every_s = config.checkpoint_every_s or 0.0
        self._keep = config.checkpoint_keep

    async def run(self) -> None:
        """For ever; returns at once where none is asked for."""
        if not self._every_s:
            return
        while True:
            try:
                await asyncio.sleep(await self._due_s())
                made = await self._make()
                log.info("checkpoint made", id=made.id, kind=made.kind, bytes=made.bytes)
                deleted = await self._blocking(prune_checkpoints, self._path, self._keep)
                if deleted:
                    log.info("old checkpoints deleted", ids=deleted)
            except HybridPSError as error:
                log.warning("checkpoint failed; it is tried again", reason=str(error))
                await asyncio.sleep(min(RETRY_S, self._every_s))

    async def _due_s(self) -> float:
        """Seconds until the next is due."""
        newest = await self._blocking(_newest, self._path)
        return 0.0 if newest is None else max(0.0, newest + self._every_s - time.time())

    async def _make(self) -> Checkpoint:
        begun = await self._job({"do": "begin", "path": self._path, "full": False})
        own = {"path": self._path, "id": begun["id"]}
        saved = await self._job({"do": "save", **own, "parent": begun["parent"], "rate": 0})
        draft = {"parent": begun["parent"], "step": None, "extra": None, "shards": [saved]}
        return Checkpoint.of(await self._job({"do": "publish", **own, "draft": draft}))

    async def _job(self, request: dict[str, Any]) -> Any:
        name, text = secrets.token_hex(8), json.dumps(request)
        while True:
            answer = json.loads(await self._blocking(self._store.job, name, text))
            if "result" in answer:
                return answer["result"]
            await asyncio.sleep(LOOK_S)

    async def _blocking(self, call: Any, *args: Any) -> Any:
        return await self._workers.run(Lane.ORDERS, call, *args)


def _newest(path: str) -> float | None:
    """When the newest was made; one that lies in the future was made now."""
    found = checkpoints(path)
    return min(found[-1].created, time.time()) if found else None
