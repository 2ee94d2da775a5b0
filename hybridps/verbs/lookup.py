"""`lookup`: rows for inference. Never creates, counts nothing but heat."""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.bags import Pool, as_out, check_pool
from hybridps.verbs.batches import RowsLike, batch
from hybridps.verbs.calls import Begun, Found, Hot, Keys, Rows, Site
from hybridps.verbs.catalog import (
    Catalog,
    Handle,
    StoreFace,
    TableFace,
    TableT,
    check_mapping,
    resolve,
)
from hybridps.verbs.face import Run, Steps, Verb, typed_verb, verb
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.pooled import Asked, lookup_pooled
from hybridps.verbs.reading import Part, read, rows_of, splits_of
from hybridps.verbs.staleness import check_staleness

Reply = tuple[Rows, Found | None]


@dataclass(frozen=True, slots=True)
class Lookup(Hot[list[Reply]]):
    """Rows, and if wanted flags, one pair a table."""

    VERB = "lookup"
    ORDER = Order.READ
    LANE = Lane.READS
    RIGHT = Right.READ

    tables: Sequence[tuple[int, Keys]]
    want_found: bool

    def run(self, site: Site) -> list[Reply]:
        """The device may be waited for."""
        return site.store.lookup(self.tables, self.want_found)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys behind a header."""
        return wire.lookup(self.tables, self.want_found)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> list[Reply]:
        """Views of the received frame."""
        return rows_of([keys for _, keys in self.tables], answer, want_found=self.want_found)


def lookup(
    catalog: Catalog, handles: Sequence[Handle], keys: Sequence[KeysLike], want_found: bool
) -> Steps[list[Any]]:
    """One Rows, or tuple[Rows, Found], a table."""
    splits = yield from splits_of(catalog, handles, keys)

    def call(parts: list[Part]) -> Lookup:
        tables = [(s.batch.table.ids[shard], s.keys[piece]) for s, shard, piece, _ in parts]
        return Lookup(tables, want_found)

    replies = yield from read(splits, call)
    results: list[Any] = []
    for split, part in zip(splits, replies, strict=True):
        rows = split.rows([rows for rows, _ in part])
        results.append((rows, split.found([found for _, found in part])) if want_found else rows)
    return results


def lookup_out(
    catalog: Catalog, handles: Sequence[Handle], asked: Sequence[Asked], return_found: bool
) -> Steps[list[Any]]:
    """As `lookup`, into the arrays that were given."""
    for handle, of in zip(handles, asked, strict=True):
        if of.out is not None:
            ref = yield from resolve(catalog, handle)
            as_out(of.out, batch(ref, of.keys).rows_shape, ref.name)
    results = yield from lookup(catalog, handles, [of.keys for of in asked], return_found)
    for n, of in enumerate(asked):
        if of.out is None:
            continue
        rows = results[n][0] if return_found else results[n]
        written = as_out(of.out, rows.shape, handles[n].name)
        np.copyto(written, rows)
        results[n] = (written, results[n][1]) if return_found else written
    return results


_RowsT_co = TypeVar("_RowsT_co", covariant=True)
_FoundT_co = TypeVar("_FoundT_co", covariant=True)


class _LookupOf(Protocol[_RowsT_co, _FoundT_co]):
    """`lookup` where it gives a _RowsT_co, and a _FoundT_co with `return_found`."""

    @overload
    def __call__(
        self,
        keys: KeysLike,
        *,
        return_found: Literal[False] = False,
        pool: Pool | None = None,
        offsets: ArrayLike | None = None,
        weights: RowsLike | None = None,
        out: Rows | None = None,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> _RowsT_co: ...
    @overload
    def __call__(
        self,
        keys: KeysLike,
        *,
        return_found: Literal[True],
        out: Rows | None = None,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> _FoundT_co: ...


_Lookup = Verb[
    _LookupOf[Rows, tuple[Rows, Found]],
    _LookupOf[Coroutine[Any, Any, Rows], Coroutine[Any, Any, tuple[Rows, Found]]],
]


class LookupOfTable(TableFace):
    """`Table.lookup`."""

    @typed_verb(_Lookup)
    def lookup(
        self,
        keys: KeysLike,
        *,
        return_found: bool = False,
        pool: Pool | None = None,
        offsets: ArrayLike | None = None,
        weights: RowsLike | None = None,
        out: Rows | None = None,
        max_staleness: float | None = None,
        timeout: float | None = None,
    ) -> Run[Rows | tuple[Rows, Found]]:
        """Rows of keys, for inference: never inserts, changes no statistics.

        With `pool` one row a bag of keys, reduced on the servers: a tenth of the bytes for ten keys
        a bag. "sum" adds the rows, each times its weight, in float32 in order of the bag; servers'
        sums are added in order of the shards, so the last bits depend on their number. "mean"
        divides by the number of keys, or the sum of the weights; "sqrtn" by the square root of the
        number of keys, or of the sum of the squared weights. So do torch's EmbeddingBag ("sum" and
        "mean"; its mean takes no weights) and the combiners of TensorFlow's
        safe_embedding_lookup_sparse. An absent key adds zeros and counts; an empty bag, and one
        whose divisor is 0, is zeros.

        Args:    keys: any integer array, tensor or sequence, or str, of any shape; may repeat.
                 pool: "sum", "mean" or "sqrtn"; None: a row a key.
                 offsets: int64[bags], where each bag begins among keys of one dimension: from 0,
                 not falling; the last bag ends with the keys. None: the last dimension of the keys.
                 weights: float32 of the keys' shape, finite; None: 1 each.
                 out: float32 of the result's shape, written and returned.
                 max_staleness: seconds that a replica may be behind the one that it follows, asked
                 of it before the rows: one more trip. None: any.
        Returns: float32[keys.shape + (dim,)], zeros for absent keys; a fresh array. With
                 `return_found` also bool[keys.shape]. Pooled: float32[bags, dim].
        Raises:  BadInputError, TableNotFoundError, CorruptionError, UnavailableError (StaleError
                 beyond `max_staleness`), DeadlineError.
        """
        if pool is None and offsets is None and weights is None and out is None:
            steps = self._lookup(keys, return_found)
        else:
            _check_pooling(pool, return_found, offsets is not None or weights is not None)
            steps = self._pooled(Asked(keys, offsets, weights, out), pool, return_found)
        if max_staleness is not None:
            steps = self._fresh(steps, max_staleness)
        return self._run(steps, timeout)

    def _fresh(self, steps: Steps[Any], most: float) -> Steps[Any]:
        yield from check_staleness(self._catalog, most)
        return (yield from steps)

    def _lookup(self, keys: KeysLike, return_found: bool) -> Steps[Any]:
        (result,) = yield from lookup(self._catalog, [self._handle], [keys], return_found)
        return result

    def _pooled(self, asked: Asked, pool: Pool | None, return_found: bool) -> Steps[Any]:
        catalog, handles = self._catalog, [self._handle]
        if pool is None:
            (result,) = yield from lookup_out(catalog, handles, [asked], return_found)
        else:
            (result,) = yield from lookup_pooled(catalog, handles, [asked], pool)
        return result


class LookupOfStore(StoreFace[TableT]):
    """`ParameterServer.lookup`."""

    @verb
    def lookup(
        self,
        batches: Mapping[str, Any],
        *,
        return_found: bool = False,
        pool: Pool | None = None,
        out: Mapping[str, Rows] | None = None,
        timeout: float | None = None,
    ) -> Run[dict[str, Any]]:
        """`Table.lookup` of several tables in one pass: one call per server for all of them.

        With `pool` a table has (keys, offsets) or (keys, offsets, weights), or keys alone of shape
        (bags, keys a bag). `out`: arrays by table name, of any of the tables.
        """
        check_mapping(batches, "lookup")
        names = list(batches)
        _check_pooling(pool, return_found, False)
        written = _outs(names, out)
        if pool is not None:
            asked = [_asked(name, batches[name], written.get(name)) for name in names]
            return self._run_to_dict(lookup_pooled, names, asked, pool, timeout=timeout)
        asked = [Asked(keys, out=written.get(name)) for name, keys in batches.items()]
        return self._run_to_dict(lookup_out, names, asked, return_found, timeout=timeout)


def _check_pooling(pool: object, return_found: bool, has_bags: bool) -> None:
    if pool is None:
        if has_bags:
            raise BadInputError('offsets= and weights= say how to pool; give pool="sum" too')
        return
    check_pool(pool)
    if return_found:
        raise BadInputError(
            "return_found= tells of each key, a pooled row is of many; look the keys up without"
            " pool= to learn which have rows"
        )


def _outs(names: Sequence[str], out: Mapping[str, Rows] | None) -> Mapping[str, Rows]:
    if out is None:
        return {}
    check_mapping(out, "out=")
    for name in out:
        if name not in names:
            raise BadInputError(f"out names table {name!r}, keys are of {list(names)}")
    return out


def _asked(name: str, bags: Any, out: Rows | None) -> Asked:
    if not isinstance(bags, tuple):
        return Asked(bags, out=out)
    pair = len(("keys", "offsets"))
    if len(bags) not in (pair, pair + 1):
        raise BadInputError(
            f"table {name!r}: give (keys, offsets) or (keys, offsets, weights), not {len(bags)} of"
            " them"
        )
    keys, offsets, weights = bags if len(bags) > pair else (*bags, None)
    return Asked(keys, offsets, weights, out)
