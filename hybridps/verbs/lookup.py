"""`lookup`: rows for inference. Never creates, counts nothing but heat."""

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, overload

from hybridps import _core
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.calls import Begun, Found, Hot, Keys, Rows, Site
from hybridps.verbs.catalog import Catalog, Handle, StoreFace, TableFace, TableT, check_mapping
from hybridps.verbs.face import Run, Steps, Verb, typed_verb, verb
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.reading import Part, read, rows_of, splits_of

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


_RowsT_co = TypeVar("_RowsT_co", covariant=True)
_FoundT_co = TypeVar("_FoundT_co", covariant=True)


class _LookupOf(Protocol[_RowsT_co, _FoundT_co]):
    """`lookup` where it gives a _RowsT_co, and a _FoundT_co with `return_found`."""

    @overload
    def __call__(
        self, keys: KeysLike, *, return_found: Literal[False] = False, timeout: float | None = None
    ) -> _RowsT_co: ...
    @overload
    def __call__(
        self, keys: KeysLike, *, return_found: Literal[True], timeout: float | None = None
    ) -> _FoundT_co: ...


_Lookup = Verb[
    _LookupOf[Rows, tuple[Rows, Found]],
    _LookupOf[Coroutine[Any, Any, Rows], Coroutine[Any, Any, tuple[Rows, Found]]],
]


class LookupOfTable(TableFace):
    """`Table.lookup`."""

    @typed_verb(_Lookup)
    def lookup(
        self, keys: KeysLike, *, return_found: bool = False, timeout: float | None = None
    ) -> Run[Rows | tuple[Rows, Found]]:
        """Rows of keys, for inference: never inserts, changes no statistics.

        Args:    keys: any integer array, tensor or sequence, or str, of any shape; may repeat.
        Returns: float32[keys.shape + (dim,)], zeros for absent keys; a fresh array. With
                 `return_found` also bool[keys.shape].
        Raises:  BadInputError, TableNotFoundError, CorruptionError, UnavailableError,
                 DeadlineError.
        """
        return self._run(self._lookup(keys, return_found), timeout)

    def _lookup(self, keys: KeysLike, return_found: bool) -> Steps[Any]:
        (result,) = yield from lookup(self._catalog, [self._handle], [keys], return_found)
        return result


class LookupOfStore(StoreFace[TableT]):
    """`ParameterServer.lookup`."""

    @verb
    def lookup(
        self,
        batches: Mapping[str, KeysLike],
        *,
        return_found: bool = False,
        timeout: float | None = None,
    ) -> Run[dict[str, Any]]:
        """`Table.lookup` of several tables in one pass: one call per server for all of them."""
        check_mapping(batches, "lookup")
        names, keys = list(batches), list(batches.values())
        return self._run_to_dict(lookup, names, keys, return_found, timeout=timeout)
