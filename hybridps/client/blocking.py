"""The blocking client: `ParameterServer` and its tables. Safe to use from many threads."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeVar, overload

from numpy.typing import ArrayLike

from hybridps.client import verbs
from hybridps.client.batches import RowsLike
from hybridps.client.calls import Found, Keys, Rows
from hybridps.client.verbs import KEEP, Addressed, Catalog, Handle, Keep, Steps
from hybridps.errors import BadInputError
from hybridps.keys import KeysLike
from hybridps.types import TableSpec

T = TypeVar("T")


class Transport(Protocol):
    """What moves calls to the servers: see `local` and `remote`."""

    @property
    def shards(self) -> int:
        """How many servers share the keys."""

    def perform(self, addressed: Sequence[Addressed], timeout: float | None) -> list[Any]:
        """Replies of the calls, in order; raises the first error when all have ended."""

    def close(self) -> None:
        """Ends the connections; a second call does nothing."""


class Driver:
    """Runs verbs over a transport; shared by a client and its tables."""

    def __init__(self, transport: Transport, url: str) -> None:
        self.transport = transport
        self.catalog = Catalog(transport.shards)
        self.url = url

    def run(self, steps: Steps[T], timeout: float | None = None) -> T:
        """Runs a verb to its result."""
        try:
            addressed = next(steps)
            while True:
                try:
                    replies = self.transport.perform(addressed, timeout)
                except Exception as error:  # noqa: BLE001 - the verb decides what to do with it
                    addressed = steps.throw(error)
                else:
                    addressed = steps.send(replies)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def run_by_name(
        self, verb: Any, names: Sequence[str], *args: Any, timeout: float | None
    ) -> dict[str, Any]:
        """Runs a verb of several tables; its results by name."""
        results = self.run(verbs.by_name(self.catalog, names, verb, *args), timeout)
        return dict(zip(names, results or (), strict=False))

    def run_text(
        self, verb: Any, names: Sequence[str], *args: Any, timeout: float | None
    ) -> str | None:
        """As `run_by_name`, for a verb whose result is what to warn of."""
        text: str | None = self.run(verbs.by_name(self.catalog, names, verb, *args), timeout)
        return text


def warn_of(text: str | None) -> None:
    """Warns the caller of the verb that calls this."""
    if text is not None:
        warnings.warn(text, UserWarning, stacklevel=3)


def check_mapping(batches: object, verb: str) -> None:
    """Refuses what is not a dict by table name."""
    if not isinstance(batches, Mapping):
        raise BadInputError(
            f'{verb} takes a dict by table name, such as {{"item": keys}};'
            f" got a {type(batches).__name__}"
        )


def split_pairs(batches: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """The keys and the gradients of {"item": (keys, gradients)}."""
    for name, pair in batches.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != len(("keys", "gradients")):
            raise BadInputError(f"table {name!r}: give a pair (keys, gradients)")
    return [pair[0] for pair in batches.values()], [pair[1] for pair in batches.values()]


def split_counts(
    names: Sequence[str], counts: Mapping[str, ArrayLike] | None
) -> list[ArrayLike | None]:
    """The counts of each table of the call, None where none were given."""
    if counts is None:
        return [None] * len(names)
    check_mapping(counts, "counts=")
    strays = [name for name in counts if name not in names]
    if strays:
        raise BadInputError(
            f"counts name table {strays[0]!r}, keys are of {list(names)}; give counts of those"
        )
    return [counts.get(name) for name in names]


class Table:
    """A table of a `ParameterServer`. It stays with its table: after a drop its verbs raise
    TableNotFoundError, also when a new table took the name.

    Every verb takes `timeout`, seconds, for this call alone; None is that of `connect`.
    """

    def __init__(self, driver: Driver, handle: Handle) -> None:
        self._driver = driver
        self._catalog = driver.catalog
        self._handle = handle

    def __repr__(self) -> str:
        return f"<hybridps table {self.name!r} at {self._driver.url}>"

    def _run(self, steps: Steps[T], timeout: float | None = None) -> T:
        return self._driver.run(verbs.on_handle(self._handle, steps), timeout)

    @property
    def name(self) -> str:
        """The table's name."""
        return self._handle.name

    @property
    def dim(self) -> int:
        """Columns of a row."""
        return self._run(verbs.resolve(self._catalog, self._handle)).dim

    @property
    def spec(self) -> TableSpec:
        """The stored spec, live settings included, as the server has it now."""
        return self._run(verbs.spec_of(self._catalog, self._handle))

    @overload
    def lookup(
        self, keys: KeysLike, *, return_found: Literal[False] = False, timeout: float | None = None
    ) -> Rows: ...
    @overload
    def lookup(
        self, keys: KeysLike, *, return_found: Literal[True], timeout: float | None = None
    ) -> tuple[Rows, Found]: ...
    def lookup(
        self, keys: KeysLike, *, return_found: bool = False, timeout: float | None = None
    ) -> Rows | tuple[Rows, Found]:
        """Rows of keys, for inference: never inserts, changes no statistics.

        Args:    keys: any integer array, tensor or sequence, or str, of any shape; may repeat.
        Returns: float32[keys.shape + (dim,)], zeros for absent keys; a fresh array. With
                 `return_found` also bool[keys.shape].
        Raises:  BadInputError, TableNotFoundError, CorruptionError, UnavailableError,
                 DeadlineError.
        """
        catalog = self._catalog
        (result,) = self._run(verbs.lookup(catalog, [self._handle], [keys], return_found), timeout)
        rows: Rows | tuple[Rows, Found] = result
        return rows

    def lookup_or_insert(
        self, keys: KeysLike, counts: ArrayLike | None = None, *, timeout: float | None = None
    ) -> Rows:
        """Rows of keys, for training: creates absent ones, counts, marks the last use.

        Args:    counts: uint32 of the keys' shape, None for one per occurrence; repeats add up.
        Returns: float32[keys.shape + (dim,)]; a fresh array.
        Raises:  as `lookup`, and StoreFullError.
        """
        catalog = self._catalog
        steps = verbs.lookup_or_insert(catalog, [self._handle], [keys], [counts])
        (rows,) = self._run(steps, timeout)
        return rows

    def apply_gradients(
        self,
        keys: KeysLike,
        gradients: RowsLike,
        step: int | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """Runs the optimizer once for each unique key; repeated keys are summed in float32 in order
        of occurrence, absent keys are created first. Applied exactly once.

        Args:    gradients: float32, float16 or bfloat16, keys.shape + (dim,), finite.
                 step: grows from push to push; lets a restarted trainer replay its steps.
        Raises:  BadInputError, TableNotFoundError, StoreFullError, UnavailableError, DeadlineError.
        """
        catalog = self._catalog
        steps = verbs.apply_gradients(catalog, [self._handle], [keys], [gradients], step)
        warn_of(self._run(steps, timeout))

    def assign(self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None) -> None:
        """Sets values; absent keys get fresh slots, present ones keep theirs; the last repeat wins.

        Args:    rows: float32, float16 or bfloat16, keys.shape + (dim,), finite.
        Raises:  as `apply_gradients`.
        """
        self._run(verbs.assign(self._catalog, self._handle, keys, rows), timeout)

    def remove(self, keys: KeysLike, *, timeout: float | None = None) -> int:
        """Removes rows, slots and statistics; returns how many there were."""
        return self._run(verbs.remove(self._catalog, self._handle, keys), timeout)

    def set_learning_rate(self, learning_rate: float, *, timeout: float | None = None) -> None:
        """Changes the learning rate of later pushes; it survives a restart."""
        steps = verbs.set_learning_rate(self._catalog, self._handle, learning_rate)
        self._run(steps, timeout)

    def alter(
        self,
        *,
        learning_rate: float | Keep = KEEP,
        dram: int | str | Keep | None = KEEP,
        nvme: int | str | Keep | None = KEEP,
        expiry: Keep | None = KEEP,
        admission: Keep | None = KEEP,
        timeout: float | None = None,
    ) -> None:
        """Changes live settings; what is not named stays, None lifts a byte cap.

        `expiry` and `admission` take None alone in this version.
        """
        later = {"expiry": expiry, "admission": admission}
        steps = verbs.alter(self._catalog, self._handle, learning_rate, dram, nvme, later)
        self._run(steps, timeout)

    def __len__(self) -> int:
        return self.size()

    def __bool__(self) -> bool:
        # A handle is not empty because its table is.
        return True

    def size(self, *, timeout: float | None = None) -> int:
        """Rows in all tiers; the same as `len`."""
        return self._run(verbs.size(self._catalog, self._handle), timeout)

    def keys(self, *, timeout: float | None = None) -> Iterator[Keys]:
        """uint64 arrays that together hold every key once, in no order; for tools and tests."""
        catalog, shard, bucket = self._catalog, 0, 0
        while shard < catalog.shards:
            steps = verbs.keys_page(catalog, self._handle, shard, bucket)
            page, shard, bucket = self._run(steps, timeout)
            if page.size:
                yield page

    def stats(self, *, timeout: float | None = None) -> dict[str, int]:
        """Counters since open, summed over the servers."""
        return self._run(verbs.table_stats(self._catalog, self._handle), timeout)


class ParameterServer:
    """Tables on servers, or in this process; made by `hybridps.connect`. Also a context manager."""

    def __init__(self, transport: Transport, url: str) -> None:
        self._driver = Driver(transport, url)
        self._catalog = self._driver.catalog
        self.url = url

    def __repr__(self) -> str:
        return f"<hybridps.ParameterServer {self.url}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def create_table(self, spec: TableSpec, *, timeout: float | None = None) -> Table:
        """Creates the table, or opens an equal one; a UserWarning names each live difference.

        Raises: TableMismatchError naming each difference in shape, BadInputError, StoreFullError.
        """
        handle, differences = self._driver.run(verbs.create_table(self._catalog, spec), timeout)
        for text in differences:
            warnings.warn(text, UserWarning, stacklevel=2)
        return Table(self._driver, handle)

    def table(self, name: str, *, timeout: float | None = None) -> Table:
        """The table of that name. Raises TableNotFoundError when absent."""
        return Table(self._driver, self._driver.run(verbs.open_table(self._catalog, name), timeout))

    def tables(self, *, timeout: float | None = None) -> list[str]:
        """Names of all tables, sorted."""
        return self._driver.run(verbs.list_tables(self._catalog), timeout)

    def __contains__(self, name: object) -> bool:
        """`"item" in ps`: whether there is a table of that name, now."""
        return isinstance(name, str) and self._driver.run(verbs.contains(self._catalog, name))

    def drop_table(
        self, name: str, *, missing_ok: bool = False, timeout: float | None = None
    ) -> None:
        """Drops a table and all its rows. Raises TableNotFoundError when absent, unless
        `missing_ok`.
        """
        self._driver.run(verbs.drop_table(self._catalog, name, missing_ok), timeout)

    def lookup(
        self,
        batches: Mapping[str, KeysLike],
        *,
        return_found: bool = False,
        timeout: float | None = None,
    ) -> dict[str, Any]:
        """`Table.lookup` of several tables in one pass: one call per server for all of them."""
        check_mapping(batches, "lookup")
        keys = list(batches.values())
        args = verbs.lookup, list(batches), keys, return_found
        return self._driver.run_by_name(*args, timeout=timeout)

    def lookup_or_insert(
        self,
        batches: Mapping[str, KeysLike],
        counts: Mapping[str, ArrayLike] | None = None,
        *,
        timeout: float | None = None,
    ) -> dict[str, Rows]:
        """`Table.lookup_or_insert` of several tables in one pass."""
        check_mapping(batches, "lookup_or_insert")
        names, keys = list(batches), list(batches.values())
        per_table = split_counts(names, counts)
        args = verbs.lookup_or_insert, names, keys, per_table
        return self._driver.run_by_name(*args, timeout=timeout)

    def apply_gradients(
        self,
        batches: Mapping[str, tuple[KeysLike, RowsLike]],
        step: int | None = None,
        *,
        timeout: float | None = None,
    ) -> None:
        """`Table.apply_gradients` of several tables in one push; atomic on each server."""
        check_mapping(batches, "apply_gradients")
        keys, gradients = split_pairs(batches)
        args = verbs.apply_gradients, list(batches), keys, gradients, step
        warn_of(self._driver.run_text(*args, timeout=timeout))

    def prefetch(self, batches: Mapping[str, KeysLike], *, timeout: float | None = None) -> None:
        """Looks ahead: brings the rows of these keys into DRAM; never inserts."""
        check_mapping(batches, "prefetch")
        names, keys = list(batches), list(batches.values())
        self._driver.run_by_name(verbs.prefetch, names, keys, timeout=timeout)

    def stats(self, *, timeout: float | None = None) -> dict[str, int]:
        """Counters of all tables, summed over the servers, and tables, dram_limit, nvme_limit."""
        return self._driver.run(verbs.stats(self._catalog), timeout)

    def flush(self, *, timeout: float | None = None) -> None:
        """Returns when all that was acknowledged before is on the device."""
        self._driver.run(verbs.flush(self._catalog), timeout)

    def close(self) -> None:
        """Ends the connections; a store in this process is flushed and closed. Idempotent."""
        self._driver.transport.close()
