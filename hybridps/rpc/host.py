"""What all connections of one server share: the store, its workers and counters, the budgets."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from hybridps import _core
from hybridps.rpc.budget import Budget
from hybridps.rpc.limits import Limits

if TYPE_CHECKING:
    from hybridps.rpc.transport import Transport

_T = TypeVar("_T")


class Service(Protocol):
    """Who answers cold verbs."""

    async def call(self, caller: Any, verb: str, params: Any) -> bytes:
        """The results message of a call. HybridPSErrors reach the peer by class and text."""


class Workers(Protocol):
    """Who runs engine work off the loop."""

    def run(self, function: Callable[[], _T], /) -> Awaitable[_T]:
        """Runs the function on a thread."""


class Metrics(Protocol):
    """Who counts."""

    def observe(self, method: str, code: str, seconds: float) -> None:
        """One answered call."""

    def reject(self, limit: str) -> None:
        """One refusal."""


class Host:
    """What all connections of a server share."""

    def __init__(
        self,
        store: _core.Store,
        service: Service,
        workers: Workers,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.store = store
        self.service = service
        self.workers = workers
        self.metrics = metrics
        self.limits = limits
        # Apart, because a call that holds its frame waits for room for its reply.
        self.frames = Budget(limits.inflight_bytes // 2)
        self.replies = Budget(limits.inflight_bytes // 2)
        self.pushes = Budget(limits.push_bytes)
        self.transports: set[Transport] = set()
        self.is_draining = False
        # True: a call may wait for a device, which none may do on the loop, however small it is.
        self.may_wait = False
