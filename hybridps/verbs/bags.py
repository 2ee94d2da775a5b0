"""Bags of keys, checked, split by server and cut to what a message holds; and their sums, pooled.

Pure. A bag is a run of keys that becomes one row. Its keys go to their servers in its own order;
each server answers one sum for each bag that has keys there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybridps import placement
from hybridps.errors import BadInputError, HybridPSError
from hybridps.keys import KeysLike, Shape, to_host
from hybridps.verbs.batches import Batch, RowsLike, TableRef, as_numbers, batch
from hybridps.verbs.calls import Counts, Keys, Rows
from hybridps.verbs.router import DEFAULT_LIMITS, ReadLimits

Pool = Literal["sum", "mean", "sqrtn"]
Weights = NDArray[np.float32]
POOLS: Final = ("sum", "mean", "sqrtn")


@dataclass(frozen=True, slots=True)
class Bags:
    """The bags of one table: their keys, how many each has, a weight for each key or None."""

    batch: Batch
    sizes: Counts
    weights: Weights | None
    # Of the bags: their results have a dim more.
    shape: Shape

    @property
    def rows_shape(self) -> Shape:
        """Shape of the pooled rows."""
        return (*self.shape, self.batch.table.dim)

    def divided(self, sums: Rows, pool: str) -> Rows:
        """The sums as `pool` wants them, divided in place; zeros where the divisor is 0."""
        if pool == "sum":
            return sums
        bags = len(self.sizes)
        weights = self.weights
        if weights is None:
            divisors: NDArray[np.float64] = self.sizes.astype(np.float64)
        else:
            of_bag = np.repeat(np.arange(bags), self.sizes)
            terms = weights if pool == "mean" else np.square(weights, dtype=np.float64)
            divisors = np.bincount(of_bag, weights=terms, minlength=bags).astype(np.float64)
        if pool == "sqrtn":
            divisors = np.sqrt(divisors)
        narrow = divisors.astype(np.float32)[:, None]
        is_zero = narrow == 0
        sums /= np.where(is_zero, np.float32(1), narrow)
        sums[is_zero[:, 0]] = 0
        return sums


@dataclass(frozen=True, slots=True)
class Piece:
    """Bags of one table, or parts of bags, whose keys one server owns."""

    # Place of the table in the call.
    index: int
    # Which bags, ascending.
    bags: NDArray[np.intp]
    keys: Keys
    sizes: Counts
    weights: Weights | None


def check_pool(pool: object) -> None:
    """Refuses what is no way to pool."""
    if pool not in POOLS:
        raise BadInputError(f"pool is {pool!r}; give one of {', '.join(map(repr, POOLS))}")


def as_bags(
    table: TableRef, keys: KeysLike, offsets: ArrayLike | None, weights: RowsLike | None
) -> Bags:
    """The bags of a table, checked whole."""
    of = batch(table, keys)
    weighted = None if weights is None else _as_weights(of, weights)
    if offsets is None:
        if len(of.shape) < len(("bags", "keys")):
            raise BadInputError(
                f"table {table.name!r}: keys have shape {of.shape} and there are no offsets; give"
                " offsets=, the place where each bag begins, or keys of shape (bags, keys a bag)"
            )
        *shape, size = of.shape
        sizes = np.full(int(np.prod(shape)), size, np.uint32)
        return Bags(of, sizes, weighted, tuple(shape))
    starts = _as_offsets(of, offsets)
    sizes = np.diff(starts, append=len(of.keys)).astype(np.uint32)
    return Bags(of, sizes, weighted, starts.shape)


def _as_offsets(of: Batch, offsets: ArrayLike) -> NDArray[np.int64]:
    name = of.table.name
    array = np.asarray(to_host(offsets))
    if array.dtype.kind not in "iu" and array.size:
        raise BadInputError(
            f"table {name!r}: offsets are {array.dtype}; cast them with .astype(numpy.int64)"
        )
    if array.ndim != 1 or len(of.shape) != 1:
        raise BadInputError(
            f"table {name!r}: offsets have shape {array.shape} and keys {of.shape}; give both of"
            " one dimension: the keys of all bags, and the place where each bag begins"
        )
    starts = array.astype(np.int64)
    if not starts.size and len(of.keys):
        raise BadInputError(
            f"table {name!r}: {len(of.keys)} keys and no offsets; give the place where each bag"
            " begins, the first of them 0"
        )
    if starts.size and starts[0] != 0:
        raise BadInputError(
            f"table {name!r}: offsets begin with {starts[0]}; the first bag is at 0"
        )
    falls = np.flatnonzero(starts[1:] < starts[:-1])
    if falls.size:
        at = int(falls[0])
        raise BadInputError(
            f"table {name!r}: offset {starts[at + 1]} at {at + 1} follows {starts[at]}; offsets"
            " must not fall: give where each bag begins, in order"
        )
    if starts.size and starts[-1] > len(of.keys):
        raise BadInputError(
            f"table {name!r}: the last offset is {starts[-1]}, there are {len(of.keys)} keys; a bag"
            " begins at the number of keys at most"
        )
    return starts


def _as_weights(of: Batch, weights: RowsLike) -> Weights:
    array = as_numbers(of, weights, "weights")
    if array.shape != of.shape:
        raise BadInputError(
            f"table {of.table.name!r}: weights have shape {array.shape}, keys {of.shape}; give one"
            " weight a key"
        )
    flat = np.ascontiguousarray(array).reshape(-1)
    if not np.isfinite(flat).all():
        at = int(np.argmin(np.isfinite(flat)))
        raise BadInputError(f"table {of.table.name!r}: weight {flat[at]} at {at}; give finite ones")
    return flat


def as_out(out: object, shape: Shape, table: str) -> Rows:
    """The array that results are to be written to, checked."""
    if not (isinstance(out, np.ndarray) and out.dtype == np.float32 and out.flags.writeable):
        kind = out.dtype if isinstance(out, np.ndarray) else type(out).__name__
        raise BadInputError(f"table {table!r}: out is {kind}; give a writable float32 array")
    if out.shape != shape:
        raise BadInputError(f"table {table!r}: out has shape {out.shape}; give one of {shape}")
    return out


def pieces_of(
    tables: Sequence[Bags], shards: int, limits: ReadLimits = DEFAULT_LIMITS
) -> dict[int, list[list[Piece]]]:
    """The calls for each server, in order: each the pieces that one message holds."""
    calls: dict[int, list[list[Piece]]] = {}
    filled: dict[int, float] = {}
    for index, of in enumerate(tables):
        keys_max, bags_max = limits.keys_max(0), limits.keys_max(of.batch.table.dim)
        for shard, piece in _by_shard(index, of, shards):
            own = calls.setdefault(shard, [[]])
            for part in _cut(piece, keys_max, bags_max):
                # Both directions hold something for each bag.
                share = len(part.keys) / keys_max + len(part.bags) / bags_max
                if own[-1] and filled[shard] + share > 1:
                    own.append([])
                filled[shard] = share + (filled[shard] if own[-1] else 0.0)
                own[-1].append(part)
    return dict(sorted(calls.items()))


def _by_shard(index: int, of: Bags, shards: int) -> Iterator[tuple[int, Piece]]:
    bags = np.arange(len(of.sizes))
    if shards == 1:
        yield 0, Piece(index, bags, of.batch.keys, of.sizes, of.weights)
        return
    owners = placement.shards(of.batch.keys, shards)
    of_bag = np.repeat(bags, of.sizes)
    for shard in range(shards):
        own = owners == shard
        sizes = np.bincount(of_bag[own], minlength=len(bags)).astype(np.uint32)
        held = np.flatnonzero(sizes)
        if held.size:
            weights = None if of.weights is None else of.weights[own]
            yield shard, Piece(index, held, of.batch.keys[own], sizes[held], weights)


def _cut(piece: Piece, keys_max: int, bags_max: int) -> Iterator[Piece]:
    """Cuts at the borders of bags; within one only if it fits no message alone."""
    if not piece.sizes.size:
        yield piece
        return
    ends = np.cumsum(piece.sizes, dtype=np.int64)
    # Of a message, what the bags take up to each end.
    shares = ends / keys_max + np.arange(1, len(ends) + 1) / bags_max
    first, start = 0, 0
    while first < len(ends):
        room = start / keys_max + first / bags_max + 1
        last = max(first, int(np.searchsorted(shares, room, "right")))
        end = int(ends[last - 1]) if last > first else _inside(start, int(ends[first]), keys_max)
        stop = max(last, first + 1)
        sizes = np.diff(ends[first:stop], prepend=start)
        sizes[-1] = end - start - int(sizes[:-1].sum())
        weights = None if piece.weights is None else piece.weights[start:end]
        bags, keys = piece.bags[first:stop], piece.keys[start:end]
        yield Piece(piece.index, bags, keys, sizes.astype(np.uint32), weights)
        first, start = (stop if end == ends[stop - 1] else first), end


def _inside(start: int, end: int, keys_max: int) -> int:
    """Where a bag is cut that fits no message."""
    return min(end, start + max(1, keys_max // 2))


def added(tables: Sequence[Bags], answers: Sequence[tuple[Sequence[Piece], Any]]) -> list[Rows]:
    """The sums of each table's bags: those of the servers added in their order."""
    parts = list(_rows(tables, answers))
    is_whole = [len(piece.bags) == len(tables[piece.index].sizes) for piece, _ in parts]
    if sorted(piece.index for piece, _ in parts) == list(range(len(tables))) and all(is_whole):
        return [rows for _, rows in sorted(parts, key=lambda part: part[0].index)]
    sums = [np.zeros((len(of.sizes), of.batch.table.dim), np.float32) for of in tables]
    for piece, rows in parts:
        # A piece names a bag once.
        sums[piece.index][piece.bags] += rows
    return sums


def _rows(
    tables: Sequence[Bags], answers: Sequence[tuple[Sequence[Piece], Any]]
) -> Iterator[tuple[Piece, Rows]]:
    for pieces, replies in answers:
        for piece, rows in zip(pieces, replies, strict=True):
            table = tables[piece.index].batch.table
            if len(piece.bags) and rows.shape[1] != table.dim:
                raise HybridPSError(
                    f"table {table.name!r}: the server's rows are not of {table.dim}"
                )
            yield piece, rows.reshape(len(piece.bags), table.dim)
