"""`scrub`: all that is on the device is read and checked; what can be mended is."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from hybridps.errors import BadInputError
from hybridps.security.rights import Right
from hybridps.sizes import parse_size
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import StoreFace, TableT
from hybridps.verbs.face import Run, Steps, walk
from hybridps.verbs.kinds import Lane, Order

_MIB: Final = 1 << 20
# What one call reads at most: it is answered within a deadline on a slow device too.
STEP_MAX_BYTES: Final = 64 * _MIB


@dataclass(frozen=True, slots=True)
class Damaged:
    """A part of the log that is not what was written."""

    # None: it cannot be told, or matters to no row.
    table: str | None
    key: int | None
    # Bytes, in the log of the server.
    offset: int
    # "lost": the key raises CorruptionError until it is assigned or removed. "rewritten": the row
    # was sound in DRAM. "freed": no row needs it, its space is used again. "left": there was no
    # room to move what is sound beside it.
    fate: str


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """What one step of a scrub has read, and found."""

    # Records that are sound, bytes that were read, and about how many a whole pass reads.
    records: int
    bytes: int
    total_bytes: int
    damaged: tuple[Damaged, ...]
    # Where the next step of this server begins; None: that was the last.
    next: int | None


@dataclass(frozen=True, slots=True)
class Scrub(Cold[Scrubbed]):
    """One step; the server reads less where `bytes` would keep it for long."""

    VERB = "scrub"
    ORDER = Order.FREE
    LANE = Lane.ORDERS
    RIGHT = Right.ADMIN

    start: int
    bytes: int

    def run(self, site: Site) -> Scrubbed:
        """Reads the device."""
        step = site.store.scrub(self.start, min(self.bytes, STEP_MAX_BYTES))
        following, records, read, total, found = step
        damaged = (
            Damaged(row and row[0], row and row[1], offset, fate) for row, offset, fate in found
        )
        return Scrubbed(records, read, total, tuple(damaged), following)

    @classmethod
    def answer(cls, results: Any, value: Scrubbed) -> None:
        """Finding by finding."""
        results.isEnd = value.next is None
        results.next = value.next or 0
        results.records = value.records
        results.bytes = value.bytes
        results.totalBytes = value.total_bytes
        filled = results.init("damaged", len(value.damaged))
        for found, damaged in zip(filled, value.damaged, strict=True):
            found.hasRow = damaged.table is not None
            found.table = damaged.table or ""
            found.key = damaged.key or 0
            found.offset = damaged.offset
            found.fate = damaged.fate

    @classmethod
    def result(cls, results: Any) -> Scrubbed:
        """As above."""
        damaged = (
            Damaged(
                str(found.table) if found.hasRow else None,
                found.key if found.hasRow else None,
                found.offset,
                str(found.fate),
            )
            for found in results.damaged
        )
        following = None if results.isEnd else results.next
        return Scrubbed(
            results.records, results.bytes, results.totalBytes, tuple(damaged), following
        )


class _Position:
    """Where a scrub of all servers has come to."""

    def __init__(self) -> None:
        self.shard = 0
        self.start = 0


def _step(position: _Position, step_bytes: int) -> Steps[Scrubbed | None]:
    """One step of one server; the position moves behind it."""
    (step,) = yield [(position.shard, Scrub(position.start, step_bytes))]
    if step.next is None:
        position.shard, position.start = position.shard + 1, 0
    else:
        position.start = step.next
    scrubbed: Scrubbed = step
    return scrubbed


class ScrubOfStore(StoreFace[TableT]):
    """`ParameterServer.scrub`."""

    @walk
    def scrub(
        self, step: int | str = "8MiB", *, timeout: float | None = None
    ) -> Iterator[Run[Scrubbed | None]]:
        """Reads and checks all that is on the device, server after server, step by step.

        A damaged part is mended as far as can be: sound rows beside it move, rows that are in DRAM
        are written anew; a lost one raises CorruptionError until it is assigned or removed. Rows
        that were never written are not looked at; `flush` before, for all. Pause between steps to
        go slowly.

        Args:    step: bytes read between two steps, at least a segment, at most 64 MiB.
        Raises:  BadInputError, UnavailableError, DeadlineError.
        """
        step_bytes = parse_size(step)
        if step_bytes < 1:
            raise BadInputError(f"scrub: step is {step!r}; give a size like 8MiB")
        position = _Position()
        while position.shard < self._catalog.shards:
            yield Run(_step(position, step_bytes), timeout)
