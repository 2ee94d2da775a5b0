"""The store in this process as a transport: calls go straight to the engine.

Calls are not interrupted, so a deadline does not apply to them. After a fork the engine's threads
are gone: a child is refused. A program that ends without `close` loses nothing: `leave` closes what
is open.
"""

import itertools
import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from typing import Any

from hybridps import _core
from hybridps.client import calls, leave
from hybridps.client.calls import Call, Opened
from hybridps.client.retry import check_timeout
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
        leave.watch(store)

    def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order. `timeout` does not apply, but must be one."""
        check_timeout(timeout, 0.0)
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
        if isinstance(call, calls.Push):
            with self._push_lock:
                return _push(self._store, self._session, next(self._numbers), call)
        return _EXECUTE[type(call)](self._store, call)


def _push(store: _core.Store, session: int, number: int, call: calls.Push) -> Any:
    match call:
        case calls.ApplyGradients(tables, step):
            return store.apply_gradients(session, number, step, tables)
        case calls.Assign(table, keys, rows):
            return store.assign(session, number, table, keys, rows)
        case calls.Remove(table, keys):
            return store.remove(session, number, table, keys)
    raise HybridPSError(f"no push is called {type(call).__name__}")


def _create_table(store: _core.Store, call: calls.CreateTable) -> Opened:
    table, spec, warnings = store.create_table(call.spec.to_json())
    return Opened(table, TableSpec.from_json(spec), warnings)


def _open_table(store: _core.Store, call: calls.OpenTable) -> Opened:
    table, spec = store.table(call.name)
    return Opened(table, TableSpec.from_json(spec), ())


_EXECUTE: dict[type[Call], Callable[[_core.Store, Any], Any]] = {
    calls.Lookup: lambda store, call: store.lookup(call.tables, call.want_found),
    calls.LookupOrInsert: lambda store, call: store.lookup_or_insert(call.tables),
    calls.CreateTable: _create_table,
    calls.OpenTable: _open_table,
    calls.ListTables: lambda store, _: store.tables(),
    calls.DropTable: lambda store, call: store.drop_table(call.name),
    calls.SetLearningRate: lambda store, call: store.alter(
        call.table, json.dumps({"learning_rate": call.learning_rate})
    ),
    calls.Alter: lambda store, call: store.alter(call.table, json.dumps(call.change)),
    calls.Prefetch: lambda store, call: store.prefetch(call.tables),
    calls.Size: lambda store, call: store.size(call.table),
    calls.KeysOf: lambda store, call: store.keys(call.table, call.bucket),
    calls.TableStats: lambda store, call: store.table_stats(call.table),
    calls.Stats: lambda store, _: store.stats(),
    calls.Flush: lambda store, _: store.flush(),
}
