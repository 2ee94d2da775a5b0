"""Tables by name, as a client has met them, and the faces whose methods are verbs.

A handle stays with its table: after a drop its verbs raise TableNotFoundError, also when a new
table took the name. Verbs by name look again.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from hybridps.errors import BadInputError, TableNotFoundError
from hybridps.verbs.batches import TableRef
from hybridps.verbs.calls import Call
from hybridps.verbs.face import Addressed, Run, Steps
from hybridps.verbs.open_table import Opened, OpenTable
from hybridps.verbs.router import DEFAULT_LIMITS, ReadLimits

T = TypeVar("T")
TableT = TypeVar("TableT")


class Handle:
    """One table as a client holds it; found at its first verb, and never another table after."""

    def __init__(self, name: str, ref: TableRef | None = None) -> None:
        self.name = name
        self.ref = ref


class Catalog:
    """Tables that a client has met, by name. Shared by its threads: single dict operations only."""

    def __init__(
        self,
        shards: int,
        limits: Callable[[], ReadLimits] = lambda: DEFAULT_LIMITS,
        wire_dtype: str = "float32",
        *,
        tells_all: bool = False,
    ) -> None:
        self.shards = shards
        # Every server hears of every push: workers of a round meet at each.
        self.tells_all = tells_all
        # Of one read; servers tell them when they are met.
        self.limits = limits
        # How rows and gradients travel.
        self.wire_dtype = wire_dtype
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

    def everywhere(self, call: Call[Any]) -> list[Addressed]:
        """The call for each server."""
        return [(shard, call) for shard in range(self.shards)]


class TableFace:
    """A table of a client: what its verbs find."""

    _catalog: Catalog
    _handle: Handle

    def _run(self, steps: Steps[T], timeout: float | None) -> Run[T]:
        """A verb of this table."""
        return Run(_on_handle(self._handle, steps), timeout)


class StoreFace(Generic[TableT]):
    """A client: what its verbs find. TableT: its tables."""

    _catalog: Catalog

    def _table(self, handle: Handle) -> TableT:
        """A table of this client."""
        raise NotImplementedError

    def _run_by_name(
        self, verb: Callable[..., Steps[T]], names: Sequence[str], *args: Any, timeout: float | None
    ) -> Run[T]:
        """A verb of several tables by name: `verb(catalog, handles, *args)`."""
        return Run(_by_name(self._catalog, names, verb, args), timeout)

    def _run_to_dict(
        self,
        verb: Callable[..., Steps[list[T]]],
        names: Sequence[str],
        *args: Any,
        timeout: float | None,
    ) -> Run[dict[str, T]]:
        """As above, with results by name."""
        return Run(_named(self._catalog, names, verb, args), timeout)


def ref_of(opened: Sequence[Opened]) -> TableRef:
    """A table, from what each server says of it."""
    spec = opened[0].spec
    return TableRef(spec.name, tuple(table.id for table in opened), spec.dim)


def resolve(catalog: Catalog, handle: Handle) -> Steps[TableRef]:
    """The table of a handle."""
    if handle.ref is None:
        opened: list[Opened] = yield catalog.everywhere(OpenTable(handle.name))
        handle.ref = ref_of(opened)
    return handle.ref


def on_each(catalog: Catalog, handle: Handle, call: Any, *args: Any) -> Steps[list[Any]]:
    """The call for each server, of its table: `call(id, *args)`."""
    ref = yield from resolve(catalog, handle)
    return (yield [(shard, call(table, *args)) for shard, table in enumerate(ref.ids)])


def summed(replies: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Counters over all servers."""
    return {name: sum(reply.get(name, 0) for reply in replies) for name in replies[0]}


def check_mapping(batches: object, verb: str) -> None:
    """Refuses what is not a dict by table name."""
    if not isinstance(batches, Mapping):
        raise BadInputError(
            f'{verb} takes a dict by table name, such as {{"item": keys}};'
            f" got a {type(batches).__name__}"
        )


def _dropped(handles: Sequence[Handle], error: TableNotFoundError) -> TableNotFoundError:
    if any(handle.ref is None for handle in handles):
        return error
    names = ", ".join(repr(handle.name) for handle in handles)
    return TableNotFoundError(
        f"table {names} was dropped; a handle stays with its table: get a new one from"
        " ps.table(name) or ps.create_table(spec)"
    )


def _on_handle(handle: Handle, steps: Steps[T]) -> Steps[T]:
    """A verb of a handle: a dropped table is named."""
    try:
        return (yield from steps)
    except TableNotFoundError as error:
        raise _dropped([handle], error) from None


def _by_name(catalog: Catalog, names: Sequence[object], verb: Any, args: Any) -> Steps[Any]:
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


def _named(catalog: Catalog, names: Sequence[str], verb: Any, args: Any) -> Steps[dict[str, Any]]:
    results = yield from _by_name(catalog, names, verb, args)
    return dict(zip(names, results, strict=True))
