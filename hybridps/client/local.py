"""The store in this process as a transport: calls go straight to the engine.

Calls are not interrupted, so a deadline does not apply to them. After a fork the engine's threads
are gone: a child is refused. A program that ends without `close` loses nothing: `leave` closes what
is open.
"""

import itertools
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from hybridps import _core
from hybridps.client import leave
from hybridps.client.retry import check_timeout
from hybridps.errors import UnavailableError
from hybridps.verbs.calls import Call, Push, ServerInfo, Site
from hybridps.verbs.face import Addressed
from hybridps.verbs.router import ReadLimits

_LIMITS: Final = ReadLimits(merges=True)


class LocalTransport:
    """Executes calls on a `_core.Store`. Safe to use from many threads."""

    shards = 1
    wire_dtype = "float32"
    is_worker = False

    def __init__(self, store: _core.Store, path: str, client_id: str | None) -> None:
        self._store = store
        self._path = path
        self._process = os.getpid()
        info = ServerInfo(_core.__version__, shard=0, shards=1, frame_limit=0, keys_limit=0)
        self._site = Site(store, info, session=secrets.randbits(63) + 1)
        store.attach(self._site.session, client_id or "")
        # Numbers are drawn and used under one lock: pushes apply in the order of their numbers.
        self._push_lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._is_closed = False
        leave.watch(store)

    def limits(self) -> ReadLimits:
        """A read is cut as it would be for a server: so it holds no more memory. The engine looks
        up a key that repeats once, and sums what is given for it.
        """
        return _LIMITS

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

    def _execute(self, call: Call[Any]) -> Any:
        if isinstance(call, Push):
            with self._push_lock:
                return call.run(replace(self._site, number=next(self._numbers)))
        return call.run(self._site)
