"""What verbs share that read rows: the batch is split by server, and cut where one reply would not
fit a message; replies become rows again.
"""

from collections.abc import Callable, Sequence, Sized
from typing import Any, cast

import numpy as np

from hybridps import _core
from hybridps.errors import HybridPSError
from hybridps.keys import KeysLike
from hybridps.verbs import router
from hybridps.verbs.batches import batch
from hybridps.verbs.calls import Call, Found, Rows
from hybridps.verbs.catalog import Catalog, Handle, resolve
from hybridps.verbs.face import Steps
from hybridps.verbs.router import Split

# A part of a split for one server: the split, the server, its keys, the table's place in the call.
Part = tuple[Split, int, slice, int]
# The table of the call by its index, and which of its unique keys.
_Piece = tuple[int, slice]


def splits_of(
    catalog: Catalog, handles: Sequence[Handle], keys: Sequence[KeysLike]
) -> Steps[list[Split]]:
    """The unique keys of each table, server by server; all are checked before any is sent."""
    splits = []
    for handle, table_keys in zip(handles, keys, strict=True):
        ref = yield from resolve(catalog, handle)
        splits.append(router.split(batch(ref, table_keys), catalog.shards, catalog.limits()))
    return splits


def read(
    splits: Sequence[Split], call: Callable[[list[Part]], Call[Any]]
) -> Steps[list[list[Any]]]:
    """Replies by table, in order of the unique keys; `call` makes a call of its parts."""
    if len(splits) == 1 and splits[0].servers == 1 and splits[0].fits_one_read:
        # As below, at less cost: most reads are small.
        ((reply,),) = yield [(0, call([(splits[0], 0, splits[0].part(0), 0)]))]
        return [[reply]]
    rounds = _rounds(splits)
    replies: dict[tuple[int, int], list[Any]] = {}
    for number in range(max(map(len, rounds.values()), default=0)):
        now = {shard: pieces[number] for shard, pieces in rounds.items() if number < len(pieces)}
        answers = yield [
            (shard, call([(splits[i], shard, piece, i) for i, piece in pieces]))
            for shard, pieces in now.items()
        ]
        for (shard, pieces), answer in zip(now.items(), answers, strict=True):
            for (index, _), reply in zip(pieces, answer, strict=True):
                replies.setdefault((index, shard), []).append(reply)
    return [
        [reply for shard in split.shards() for reply in replies[index, shard]]
        for index, split in enumerate(splits)
    ]


def rows_of(
    keys: Sequence[Sized], answer: _core.Answer, *, want_found: bool = False
) -> list[tuple[Rows, Found | None]]:
    """The rows of an answer, a table at a time, checked against the keys, or bags, that were asked
    for.
    """
    if len(answer.rows) != len(keys):
        raise HybridPSError(f"the server answered {len(answer.rows)} tables of {len(keys)}")
    replies: list[tuple[Rows, Found | None]] = []
    for table_keys, (row_bytes, found_bytes) in zip(keys, answer.rows, strict=True):
        rows = np.frombuffer(cast("bytes", row_bytes), "<f4").astype(np.float32, copy=False)
        n = len(table_keys)
        if rows.size % max(n, 1) or (n == 0 and rows.size):
            raise HybridPSError(f"the server answered {rows.size} numbers for {n} keys")
        found = None
        if want_found:
            # Flags of no keys are an empty Data, which is the same as none.
            flags = b"" if found_bytes is None else cast("bytes", found_bytes)
            found = np.frombuffer(flags, np.uint8).view(np.bool_)
            if len(found) != n:
                raise HybridPSError(f"the server answered {len(found)} flags for {n} keys")
        replies.append((rows.reshape(n, rows.size // max(n, 1)), found))
    return replies


def _rounds(splits: Sequence[Split]) -> dict[int, list[list[_Piece]]]:
    """The reads for each server, one after the other: nearly always one for all tables.

    More only where one reply would not fit a frame; reads, unlike pushes, may be cut anywhere.
    """
    rounds: dict[int, list[list[_Piece]]] = {}
    filled: dict[int, float] = {}
    for index, split in enumerate(splits):
        most = split.read_keys_max
        for shard in split.shards():
            part = split.part(shard)
            pieces = rounds.setdefault(shard, [[]])
            for start in range(part.start, max(part.stop, part.start + 1), most):
                piece = slice(start, min(start + most, part.stop))
                share = (piece.stop - piece.start) / most
                if pieces[-1] and filled[shard] + share > 1:
                    pieces.append([])
                filled[shard] = share + (filled[shard] if pieces[-1] else 0.0)
                pieces[-1].append((index, piece))
    return dict(sorted(rounds.items()))
