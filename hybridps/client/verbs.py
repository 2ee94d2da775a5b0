"""Every verb once: validation, calls for each server, shape of the result. No I/O.

A verb is a generator: it yields the calls to make, one list at a time, is sent the list of replies
in the same order (or has the error thrown into it), and returns the result. `blocking` and `aio`
drive it over any transport. A call is validated whole before the first call is yielded.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from hybridps.client import calls, router
from hybridps.client.batches import RowsLike, TableRef, as_counts, as_rows, as_step, batch
from hybridps.client.calls import Call, Keys, Opened, Rows
from hybridps.client.router import Split
from hybridps.errors import BadInputError, TableNotFoundError
from hybridps.keys import KeysLike
from hybridps.optimizers import at_least_zero
from hybridps.placement import BUCKETS
from hybridps.sizes import parse_size
from hybridps.types import TableSpec, check_dram, check_none

T = TypeVar("T")
Addressed = tuple[int, Call]
Steps = Generator[Sequence[Addressed], list[Any], T]
# The table of the call by its index, and which of its unique keys.
Piece = tuple[int, slice]


class Keep:
    """Type of `KEEP`."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP = Keep()


class Handle:
    """One table as a client holds it; found at its first verb, and never another table after."""

    def __init__(self, name: str, ref: TableRef | None = None) -> None:
        self.name = name
        self.ref = ref


class Catalog:
    """Tables that a client has met, by name. Shared by its threads: single dict operations only."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self._handles: dict[str, Handle] = {}
        self.has_warned_of_replay = False

    def handle(self, name: object) -> Handle:
        """The handle that verbs by name use."""
        if not isinstance(name, str):
            raise BadInputError(f"table name is {name!r}; give a str")
        return self._handles.setdefault(name, Handle(name))

    def remember(self, handle: Handle) -> None:
        """`handle` is what its name means from now on."""
        self._handles[handle.name] = handle

    def forget(self, name: str) -> None:
        """The name may mean another table, or none."""
        self._handles.pop(name, None)

    def everywhere(self, call: Call) -> list[Addressed]:
        """The call for each server."""
        return [(shard, call) for shard in range(self.shards)]


def _ref(opened: Sequence[Opened]) -> TableRef:
    spec = opened[0].spec
    return TableRef(spec.name, tuple(table.id for table in opened), spec.dim)


def resolve(catalog: Catalog, handle: Handle) -> Steps[TableRef]:
    """The table of a handle."""
    if handle.ref is None:
        opened: list[Opened] = yield catalog.everywhere(calls.OpenTable(handle.name))
        handle.ref = _ref(opened)
    return handle.ref


def _dropped(handles: Sequence[Handle], error: TableNotFoundError) -> TableNotFoundError:
    if any(handle.ref is None for handle in handles):
        return error
    names = ", ".join(repr(handle.name) for handle in handles)
    return TableNotFoundError(
        f"table {names} was dropped; a handle stays with its table: get a new one from"
        " ps.table(name) or ps.create_table(spec)"
    )


def on_handle(handle: Handle, steps: Steps[T]) -> Steps[T]:
    """A verb of a handle: a dropped table is named."""
    try:
        return (yield from steps)
    except TableNotFoundError as error:
        raise _dropped([handle], error) from None


def by_name(catalog: Catalog, names: Sequence[object], verb: Any, *args: Any) -> Steps[Any]:
    """A verb of several tables by name; a table that was dropped and made anew is found again."""
    handles = [catalog.handle(name) for name in names]
    is_known = any(handle.ref is not None for handle in handles)
    try:
        return (yield from verb(catalog, handles, *args))
    except TableNotFoundError:
        for handle in handles:
            catalog.forget(handle.name)
        if not is_known:
            raise
    handles = [catalog.handle(name) for name in names]
    try:
        return (yield from verb(catalog, handles, *args))
    except TableNotFoundError as error:
        raise _dropped(handles, error) from None


def _per_shard(splits: Sequence[Split]) -> dict[int, list[int]]:
    """Which tables of the call each server is asked for."""
    plan: dict[int, list[int]] = {}
    for index, split in enumerate(splits):
        for shard in split.shards():
            plan.setdefault(shard, []).append(index)
    return dict(sorted(plan.items()))


def _splits(
    catalog: Catalog, handles: Sequence[Handle], keys: Sequence[KeysLike]
) -> Steps[list[Split]]:
    splits = []
    for handle, table_keys in zip(handles, keys, strict=True):
        ref = yield from resolve(catalog, handle)
        splits.append(router.split(batch(ref, table_keys), catalog.shards))
    return splits


def _rounds(splits: Sequence[Split]) -> dict[int, list[list[Piece]]]:
    """The reads for each server, one after the other: nearly always one for all tables.

    More only where one reply would not fit a frame; reads, unlike pushes, may be cut anywhere.
    """
    rounds: dict[int, list[list[Piece]]] = {}
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


def _read(
    splits: Sequence[Split], call: Callable[[list[tuple[Split, int, slice, int]]], Call]
) -> Steps[list[list[Any]]]:
    """Replies by table, in order of the unique keys; `call` makes a call of its pieces."""
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


def lookup(
    catalog: Catalog, handles: Sequence[Handle], keys: Sequence[KeysLike], want_found: bool
) -> Steps[list[Any]]:
    """One Rows, or tuple[Rows, Found], a table."""
    splits = yield from _splits(catalog, handles, keys)

    def call(pieces: list[tuple[Split, int, slice, int]]) -> Call:
        tables = [(s.batch.table.ids[shard], s.keys[piece]) for s, shard, piece, _ in pieces]
        return calls.Lookup(tables, want_found)

    parts = yield from _read(splits, call)
    results: list[Any] = []
    for split, part in zip(splits, parts, strict=True):
        rows = split.rows([rows for rows, _ in part])
        results.append((rows, split.found([found for _, found in part])) if want_found else rows)
    return results


def lookup_or_insert(
    catalog: Catalog,
    handles: Sequence[Handle],
    keys: Sequence[KeysLike],
    counts: Sequence[ArrayLike | None],
) -> Steps[list[Rows]]:
    """One Rows a table."""
    splits = yield from _splits(catalog, handles, keys)
    sums = [
        split.counts(as_counts(split.batch, table_counts))
        for split, table_counts in zip(splits, counts, strict=True)
    ]

    def call(pieces: list[tuple[Split, int, slice, int]]) -> Call:
        tables = []
        for split, shard, piece, index in pieces:
            total = sums[index]
            counted = None if total is None else total[piece]
            tables.append((split.batch.table.ids[shard], split.keys[piece], counted))
        return calls.LookupOrInsert(tables)

    parts = yield from _read(splits, call)
    return [split.rows(part) for split, part in zip(splits, parts, strict=True)]


def apply_gradients(
    catalog: Catalog,
    handles: Sequence[Handle],
    keys: Sequence[KeysLike],
    gradients: Sequence[RowsLike],
    step: object,
) -> Steps[str | None]:
    """One push for all tables; with a step every server hears of it, so that all agree on it.

    Returns what to warn of: the first step of this client that had been applied before.
    """
    number = as_step(step)
    splits = yield from _splits(catalog, handles, keys)
    tables: dict[int, list[tuple[int, Keys, Rows]]] = {}
    if number is not None:
        tables = {shard: [] for shard in range(catalog.shards)}
    for split, table_gradients in zip(splits, gradients, strict=True):
        rows = as_rows(split.batch, table_gradients, "gradients")
        parts = split.sums(rows)
        ref = split.batch.table
        for shard in range(catalog.shards):
            if shard in parts:
                tables.setdefault(shard, []).append((ref.ids[shard], *parts[shard]))
            elif number is not None:
                tables[shard].append((ref.ids[shard], split.keys[:0], rows[:0]))
    replayed: list[bool] = yield [
        (shard, calls.ApplyGradients(t, number)) for shard, t in sorted(tables.items())
    ]
    if number is None or not any(replayed) or catalog.has_warned_of_replay:
        return None
    catalog.has_warned_of_replay = True
    names = ", ".join(repr(handle.name) for handle in handles)
    return (
        f"table {names}: step {number} was applied before this client connected; it and others at"
        " or below the table's last step are acknowledged, not applied, and counted in"
        " duplicate_pushes"
    )


def assign(catalog: Catalog, handle: Handle, keys: KeysLike, rows: RowsLike) -> Steps[None]:
    """Sets values."""
    (split,) = yield from _splits(catalog, [handle], [keys])
    last = split.last(as_rows(split.batch, rows, "rows"))
    yield [
        (shard, calls.Assign(*_keys_of(split, shard), last[split.part(shard)]))
        for shard in split.shards()
    ]


def remove(catalog: Catalog, handle: Handle, keys: KeysLike) -> Steps[int]:
    """Rows removed."""
    (split,) = yield from _splits(catalog, [handle], [keys])
    removed: list[int] = yield [
        (shard, calls.Remove(*_keys_of(split, shard))) for shard in split.shards()
    ]
    return sum(removed)


def prefetch(catalog: Catalog, handles: Sequence[Handle], keys: Sequence[KeysLike]) -> Steps[None]:
    """Warms keys."""
    splits = yield from _splits(catalog, handles, keys)
    yield [
        (shard, calls.Prefetch([_keys_of(splits[i], shard) for i in indexes]))
        for shard, indexes in _per_shard(splits).items()
    ]


def _keys_of(split: Split, shard: int) -> tuple[int, Keys]:
    return split.batch.table.ids[shard], split.keys[split.part(shard)]


def create_table(catalog: Catalog, spec: TableSpec) -> Steps[tuple[Handle, list[str]]]:
    """A handle, and a sentence for each live setting that differs from the stored one."""
    if not isinstance(spec, TableSpec):
        raise BadInputError(f"spec is {spec!r}; give an hps.TableSpec")
    opened: list[Opened] = yield catalog.everywhere(calls.CreateTable(spec))
    handle = Handle(spec.name, _ref(opened))
    catalog.remember(handle)
    differences = dict.fromkeys(text for table in opened for text in table.warnings)
    return handle, [
        f"table {spec.name!r}: {text}; the stored value stays (Table.alter changes"
        " learning_rate, dram and nvme)"
        for text in differences
    ]


def open_table(catalog: Catalog, name: object) -> Steps[Handle]:
    """A handle to a table that exists."""
    catalog.handle(name)
    handle = Handle(str(name))
    yield from resolve(catalog, handle)
    catalog.remember(handle)
    return handle


def list_tables(catalog: Catalog) -> Steps[list[str]]:
    """Names of all tables, sorted."""
    names: list[list[str]] = yield catalog.everywhere(calls.ListTables())
    return sorted(set().union(*names))


def contains(catalog: Catalog, name: str) -> Steps[bool]:
    """Whether every server has a table of that name."""
    names: list[list[str]] = yield catalog.everywhere(calls.ListTables())
    return all(name in part for part in names)


def drop_table(catalog: Catalog, name: object, missing_ok: bool) -> Steps[None]:
    """Drops a table on every server; one that a cut-off create left on some is dropped there."""
    text = catalog.handle(name).name
    catalog.forget(text)
    missing: list[TableNotFoundError] = []
    for addressed in catalog.everywhere(calls.DropTable(text)):
        try:
            yield [addressed]
        except TableNotFoundError as error:
            missing.append(error)
    if len(missing) == catalog.shards and not missing_ok:
        raise missing[0]


def spec_of(catalog: Catalog, handle: Handle) -> Steps[TableSpec]:
    """The stored spec, live settings included."""
    ref = yield from resolve(catalog, handle)
    opened: list[Opened] = yield catalog.everywhere(calls.OpenTable(ref.name))
    if _ref(opened).ids != ref.ids:
        raise TableNotFoundError(f"table {ref.name!r} was dropped and made anew")
    return opened[0].spec


def _on_each(catalog: Catalog, handle: Handle, call: Any, *args: Any) -> Steps[list[Any]]:
    ref = yield from resolve(catalog, handle)
    return (yield [(shard, call(table, *args)) for shard, table in enumerate(ref.ids)])


def set_learning_rate(catalog: Catalog, handle: Handle, rate: object) -> Steps[None]:
    """Changes the live learning rate."""
    number = _checked(handle, at_least_zero, rate, "learning_rate")
    yield from _on_each(catalog, handle, calls.SetLearningRate, number)


def alter(
    catalog: Catalog,
    handle: Handle,
    learning_rate: object,
    dram: object,
    nvme: object,
    later: Mapping[str, object],
) -> Steps[None]:
    """Changes live settings; KEEP keeps one, None lifts a cap. `later` are of a later version."""
    change: dict[str, float | int | None] = {}
    for name, value in later.items():
        if value is not KEEP:
            _checked(handle, check_none, value, name)
    if learning_rate is not KEEP:
        change["learning_rate"] = _checked(handle, at_least_zero, learning_rate, "learning_rate")
    if dram is not KEEP:
        change["dram"] = _checked(handle, check_dram, dram)
    if nvme is not KEEP:
        change["nvme"] = None if nvme is None else _checked(handle, parse_size, nvme, "nvme")
    yield from _on_each(catalog, handle, calls.Alter, change)


def _checked(handle: Handle, check: Any, *args: Any) -> Any:
    try:
        return check(*args)
    except BadInputError as error:
        raise BadInputError(f"table {handle.name!r}: {error}") from None


def size(catalog: Catalog, handle: Handle) -> Steps[int]:
    """Rows of a table, in all tiers, on all servers."""
    return sum((yield from _on_each(catalog, handle, calls.Size)))


def keys_page(
    catalog: Catalog, handle: Handle, shard: int, bucket: int
) -> Steps[tuple[Keys, int, int]]:
    """Some keys of one server, and where to go on: (keys, shard, bucket)."""
    ref = yield from resolve(catalog, handle)
    ((keys, following),) = yield [(shard, calls.KeysOf(ref.ids[shard], bucket))]
    if following >= BUCKETS:
        shard, following = shard + 1, 0
    return keys, shard, following


def table_stats(catalog: Catalog, handle: Handle) -> Steps[dict[str, int]]:
    """Counters of a table, summed over the servers."""
    return _summed((yield from _on_each(catalog, handle, calls.TableStats)))


def stats(catalog: Catalog) -> Steps[dict[str, int]]:
    """Counters of all tables, summed over the servers."""
    replies = yield catalog.everywhere(calls.Stats())
    # Every table is on every server: its number is no sum.
    return _summed(replies) | {"tables": max(reply["tables"] for reply in replies)}


def flush(catalog: Catalog) -> Steps[None]:
    """Makes durable what was acknowledged."""
    yield catalog.everywhere(calls.Flush())


def _summed(replies: Sequence[Mapping[str, int]]) -> dict[str, int]:
    return {name: sum(reply.get(name, 0) for reply in replies) for name in replies[0]}
