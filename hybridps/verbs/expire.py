"""`expire`: rows that are due by their table's expiry go now, not when the background comes by."""

import time
from dataclasses import dataclass
from typing import Any, Self

from hybridps.errors import BadInputError
from hybridps.placement import BUCKETS
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace, resolve
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order

_SECONDS_MAX = 1 << 63


@dataclass(frozen=True, slots=True)
class Expire(Cold[tuple[int, int]]):
    """A step of a walk from `bucket` on: how many rows went, and where the next step begins."""

    VERB = "expire"
    ORDER = Order.FREE
    LANE = Lane.ORDERS
    RIGHT = Right.TRAIN

    table: int
    bucket: int
    # None: by the server's clock.
    now: int | None

    def run(self, site: Site) -> tuple[int, int]:
        """Reads the device; room in the log may be waited for."""
        return site.store.expire(self.table, self.bucket, self.now)

    def fill(self, params: Any) -> None:
        """A moment that may be none."""
        params.table, params.bucket = self.table, self.bucket
        params.hasNow, params.now = self.now is not None, self.now or 0

    @classmethod
    def read(cls, params: Any) -> Self:
        """As above."""
        return cls(params.table, params.bucket, params.now if params.hasNow else None)

    @classmethod
    def answer(cls, results: Any, value: tuple[int, int]) -> None:
        """Both."""
        results.removed, results.next = value

    @classmethod
    def result(cls, results: Any) -> tuple[int, int]:
        """As above."""
        return results.removed, results.next


def expire(catalog: Catalog, handle: Handle, now: object) -> Steps[int]:
    """Step by step on all servers side by side, each until its walk has ended."""
    moment = _seconds(handle, now)
    ref = yield from resolve(catalog, handle)
    places = dict.fromkeys(range(len(ref.ids)), 0)
    total = 0
    while places:
        calls = [
            (shard, Expire(ref.ids[shard], bucket, moment)) for shard, bucket in places.items()
        ]
        replies: list[tuple[int, int]] = yield calls
        for shard, (removed, following) in zip(list(places), replies, strict=True):
            total += removed
            places[shard] = following
            if following >= BUCKETS:
                del places[shard]
    return total


def _seconds(handle: Handle, now: object) -> int | None:
    if now is None:
        return None
    number: Any = now
    if isinstance(now, bool) or not hasattr(now, "__float__") or not 0 <= number < _SECONDS_MAX:
        raise BadInputError(
            f"table {handle.name!r}: now is {now!r}; give Unix seconds, such as"
            f" time.time() ({time.time():.0f}), or None for the server's clock"
        )
    return int(number)


class ExpireOfTable(TableFace):
    """`Table.expire`."""

    @verb
    def expire(self, now: float | None = None, *, timeout: float | None = None) -> Run[int]:
        """Removes the rows that are due by the table's expiry, and returns how many there were.

        A key that is read for training, pushed or assigned before its row goes keeps it. Walks the
        whole table: a row on NVMe costs a read, and none moves. While a checkpoint copies the table
        its due rows on NVMe stay, for a later walk. 0 in a table without an expiry.

        Args:    now: Unix seconds to reckon `After` with, on all servers; None: each one's own
                      clock, on which no jump of the date makes rows old at once.
                 timeout: of each step of the walk, about a quarter of a second long.
        Raises:  BadInputError, TableNotFoundError, StoreFullError, UnavailableError, DeadlineError.
        """
        return self._run(expire(self._catalog, self._handle, now), timeout)
