"""`checkpoint` and `restore` as users meet them: jobs on all servers, whole or not at all."""

import json
from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from typing import Any

from hybridps.checkpoints import Checkpoint, directory_of
from hybridps.errors import BadInputError, HybridPSError
from hybridps.sizes import parse_size
from hybridps.verbs.catalog import StoreFace, TableT
from hybridps.verbs.face import long_verb
from hybridps.verbs.jobs import CheckpointJob, Long, Progress, RestoreJob, work


class CheckpointOfStore(StoreFace[TableT]):
    """`ParameterServer.checkpoint` and `restore`."""

    @long_verb(Checkpoint)
    def checkpoint(
        self,
        path: str | PathLike[str],
        step: int | None = None,
        extra: Any = None,
        full: bool = False,
        rate: int | str | None = None,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Long:
        """Writes all tables to a directory of the servers, each server as of one moment of it:
        values, slots, statistics, settings and steps. Training goes on meanwhile.

        It is a delta on the newest checkpoint in `path` where that fits: as large, and as long, as
        what changed since. It is complete when it is returned, and not at all before.

        Args:    path: a directory that all servers reach under this name; made if absent.
                 step: yours; `restore(step=)` finds it by that. extra: whatever JSON can hold.
                 full: no delta. rate: bytes a second of each server ("100MiB"); None: as fast as
                 it goes. progress: called with bytes done, and about how many there will be.
                 timeout: seconds of each question, not of the whole; None: those of `connect`.
        Returns: the checkpoint.
        Raises:  BadInputError, ConfigError for a directory that cannot be used, StoreFullError
                 where its disk is full, CorruptionError naming a row that cannot be read,
                 UnavailableError.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
            raise BadInputError(f"step is {step!r}; give an integer")
        try:
            json.dumps(extra, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise BadInputError(f"extra cannot be written as JSON: {error}") from None
        where, shards = directory_of(path), range(self._catalog.shards)
        rate_bytes = 0 if rate is None else parse_size(rate)
        begin = {"do": "begin", "path": where, "full": bool(full)}
        (begun,) = yield from work(CheckpointJob, [0], begin, timeout)
        own = {"path": where, "id": begun["id"]}
        save = {"do": "save", **own, "parent": begun["parent"], "rate": rate_bytes}
        saved = yield from work(CheckpointJob, shards, save, timeout, progress)
        draft = {"parent": begun["parent"], "step": step, "extra": extra, "shards": saved}
        publish = {"do": "publish", **own, "draft": draft}
        (made,) = yield from work(CheckpointJob, [0], publish, timeout)
        return Checkpoint.of(made)

    @long_verb(dict[str, int])
    def restore(
        self,
        path: str | PathLike[str],
        id: str | None = None,  # noqa: A002 - as the contract has it
        step: int | None = None,
        tables: Sequence[str] | None = None,
        slots: bool = True,
        *,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Long:
        """Replaces tables by those of a checkpoint, saved by any number of servers. All of it is
        read and checked first; then all tables of a server change at once.

        Handles and sessions go on. Servers need room for the tables beside those that they replace.

        Args:    id: of the checkpoint; None: the newest of `step`, or of all.
                 tables: names; None: all of the checkpoint. Others stay as they are.
                 slots: False takes values and statistics alone; slots begin fresh, by the
                 optimizer and learning rate of the present table.
                 progress, timeout: as `checkpoint`.
        Returns: rows by table.
        Raises:  BadInputError if there is no such checkpoint, TableNotFoundError for a table that
                 it has not, TableMismatchError naming each difference to a table that is there,
                 CorruptionError naming a file, StoreFullError. No table has changed then.
        """
        names = None if tables is None else _names(tables)
        where, shards = directory_of(path), range(self._catalog.shards)
        stage = {"do": "stage", "path": where, "id": id, "step": step, "tables": names}
        give_up = work(RestoreJob, shards, {"do": "give_up"}, timeout)
        try:
            stage["slots"] = bool(slots)
            staged = yield from work(RestoreJob, shards, stage, timeout, progress)
        except HybridPSError:
            with suppress(HybridPSError):
                yield from give_up
            raise
        yield from work(RestoreJob, shards, {"do": "commit"}, timeout)
        rows: dict[str, int] = {}
        for part in staged:
            for name, count in part["tables"].items():
                rows[name] = rows.get(name, 0) + count
        return rows


def _names(tables: Sequence[str]) -> list[str]:
    if isinstance(tables, str) or not all(isinstance(name, str) for name in tables):
        raise BadInputError(f"tables is {tables!r}; give a list of names")
    return list(tables)
