"""The store in this process as a transport: calls go straight to the engine.

Calls are not interrupted, so a deadline does not apply to them. After a fork the engine's threads
are gone: a child is refused.
"""

import itertools
import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hybridps import _core
from hybridps.client import calls
from hybridps.client.calls import Call, Opened
from hybridps.client.verbs import Addressed
from hybridps.errors import HybridPSError, UnavailableError
from hybridps.types import TableSpec


class LocalTransport:
    """Executes calls on a `_core.Store`. Safe to use from many threads."""

    shards = 1

    def __init__(self, store: _core.Store, path: str, client_id: str | None) -> None:
        self._store = store
        self._path = path
        self._process = os.getpid()
        self._session = secrets.randbits(63) + 1
        store.attach(self._session, client_id or "")
        # Numbers are drawn and used under one lock: pushes apply in the order of their numbers.
        self._push_lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._is_closed = False

    def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order. `timeout` does not apply."""
        del timeout
        if os.getpid() != self._process:
            raise UnavailableError(
                f"store {self._path!r} was opened by process {self._process}, this is its fork"
                f" {os.getpid()}: read through a server (hps://...), or in the parent"
            )
        if self._is_closed:
            raise UnavailableError(f"store {self._path!r} is closed; connect again")
        return [self._execute(call) for _, call in addressed]

    def close(self) -> None:
        """Flushes and closes the store; a second call does nothing."""
        if os.getpid() == self._process and not self._is_closed:
            self._is_closed = True
            self._store.close()

    def _execute(self, call: Call) -> Any:
        return _EXECUTE[type(call)](self, call)

    def _push(self, call: calls.Push) -> Any:
        with self._push_lock:
            number = next(self._numbers)
            store, session = self._store, self._session
            match call:
                case calls.ApplyGradients(tables, step):
                    return store.apply_gradients(session, number, step, list(tables))
                case calls.Assign(table, keys, rows):
                    return store.assign(session, number, table, keys, rows)
                case calls.Remove(table, keys):
                    return store.remove(session, number, table, keys)
        raise HybridPSError(f"no push is called {type(call).__name__}")

    def _create_table(self, call: calls.CreateTable) -> Opened:
        table, spec, warnings = self._store.create_table(call.spec.to_json())
        return Opened(table, TableSpec.from_json(spec), warnings)

    def _open_table(self, call: calls.OpenTable) -> Opened:
        table, spec = self._store.table(call.name)
        return Opened(table, TableSpec.from_json(spec), ())


_EXECUTE: dict[type[Call], Callable[[LocalTransport, Any], Any]] = {
    calls.Lookup: lambda t, c: t._store.lookup(list(c.tables), c.want_found),
    calls.LookupOrInsert: lambda t, c: t._store.lookup_or_insert(list(c.tables)),
    calls.ApplyGradients: LocalTransport._push,
    calls.Assign: LocalTransport._push,
    calls.Remove: LocalTransport._push,
    calls.Prefetch: lambda t, c: t._store.prefetch(list(c.tables)),
    calls.CreateTable: LocalTransport._create_table,
    calls.OpenTable: LocalTransport._open_table,
    calls.ListTables: lambda t, c: t._store.tables(),
    calls.DropTable: lambda t, c: t._store.drop_table(c.name),
    calls.SetLearningRate: lambda t, c: t._store.alter(
        c.table, json.dumps({"learning_rate": c.learning_rate})
    ),
    calls.Alter: lambda t, c: t._store.alter(c.table, json.dumps(c.change)),
    calls.Size: lambda t, c: t._store.size(c.table),
    calls.KeysOf: lambda t, c: t._store.keys(c.table, c.bucket),
    calls.TableStats: lambda t, c: t._store.table_stats(c.table),
    calls.Stats: lambda t, c: t._store.stats(),
    calls.Flush: lambda t, c: t._store.flush(),
}
