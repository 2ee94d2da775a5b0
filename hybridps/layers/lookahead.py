"""Look-ahead over a loader: the rows of coming batches are warmed while the current one trains.

A hint and no more: it never inserts, counts or changes a batch, and whatever becomes of it, the
loop gets the loader's batches, its errors and its end, and can be left at any moment.
"""

import queue
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from hybridps.errors import BadInputError, HybridPSError
from hybridps.layers.ids import Patterns


@dataclass(frozen=True, slots=True)
class Feature:
    """One feature of a model: the names its ids may bear in a batch, its store and its table."""

    names: frozenset[str]
    ps: Any
    table: str


class Framework(Protocol):
    """What look-ahead asks of the framework whose batches it sees."""

    def named(self, value: Any) -> Mapping[str, Any] | None:
        """The parts of a value that names them, as a dict does; None for any other."""

    def ids_of(self, value: Any, table: str) -> Patterns | None:
        """The ids in a value that bears a feature's name; None if it only contains such values."""

    def first_ids(self, batch: Any, table: str) -> Patterns | None:
        """The first ids in a batch that names nothing; None if there are none."""


class Finder:
    """Finds the ids of a model's features in a batch, and asks the stores to warm their rows."""

    def __init__(self, features: Iterable[Feature], framework: Framework) -> None:
        self._features = list(features)
        self._framework = framework

    def find(self, batch: Any, *, ids: Any = None) -> list[tuple[Feature, Patterns]]:
        """The ids of each feature; in `ids`, if it is given, rather than in the batch.

        Raises: BadInputError when there are none.
        """
        sought = batch if ids is None else ids
        found = list(self._named(sought))
        if not found and len(self._features) == 1:
            (only,) = self._features
            first = self._framework.first_ids(sought, only.table)
            found = [] if first is None else [(only, first)]
        if not found:
            names = sorted(set().union(*(feature.names for feature in self._features)))
            raise BadInputError(
                f"no ids found in a batch of type {type(batch).__name__};"
                f" give ids=, a function of the batch -> dict keyed by any of {names}"
            )
        return found

    def _named(self, value: Any) -> Iterator[tuple[Feature, Patterns]]:
        parts = self._framework.named(value)
        if parts is None:
            if isinstance(value, (list, tuple)):
                for part in value:
                    yield from self._named(part)
            return
        for name, part in parts.items():
            features = [feature for feature in self._features if name in feature.names]
            # Two features of one table that bear one name would warm the same rows twice.
            distinct = {(id(feature.ps), feature.table): feature for feature in features}
            ids = [(f, self._framework.ids_of(part, f.table)) for f in distinct.values()]
            if any(patterns is not None for _, patterns in ids):
                yield from ((f, patterns) for f, patterns in ids if patterns is not None)
            else:
                yield from self._named(part)


def check_depth(depth: object) -> None:
    """Raises BadInputError unless it is an int of at least 1."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise BadInputError(f"depth is {depth!r}; give an int of at least 1")


def warm(found: Iterable[tuple[Feature, Patterns]]) -> None:
    """One `prefetch` call to each store."""
    stores: dict[int, tuple[Any, dict[str, list[Patterns]]]] = {}
    for feature, patterns in found:
        _, tables = stores.setdefault(id(feature.ps), (feature.ps, {}))
        tables.setdefault(feature.table, []).append(patterns.reshape(-1))
    for ps, tables in stores.values():
        ps.prefetch({table: np.concatenate(parts) for table, parts in tables.items()})


class Warmer:
    """Warms rows as far as the stores let it, and tells once if they do not."""

    def __init__(self) -> None:
        self._trouble: HybridPSError | None = None
        self._has_warned = False

    def warm(self, found: Iterable[tuple[Feature, Patterns]]) -> None:
        """As the function `warm`; what a store raises is kept for `warn`."""
        try:
            warm(found)
        except HybridPSError as error:
            self._trouble = error

    def warn(self) -> None:
        """A UserWarning, once, if rows could not be warmed; in the thread that is to see it."""
        if self._trouble is not None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"look-ahead could not warm rows, the loop goes on without: {self._trouble}",
                UserWarning,
                stacklevel=3,
            )


class LookAhead:
    """Iterable over the batches of a loader; all else is the loader's (`len`, `dataset` ...)."""

    def __init__(
        self,
        loader: Iterable[Any],
        find: Callable[[Any], list[tuple[Feature, Patterns]]],
        depth: int,
    ) -> None:
        check_depth(depth)
        self._loader = loader
        self._find = find
        self._depth = depth

    def __len__(self) -> int:
        length: int = len(self._loader)  # type: ignore[arg-type]
        return length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        # In the caller's thread: a loader forks its workers here.
        run = _Run(iter(self._loader), self._find, self._depth)
        try:
            while True:
                batch, error = run.ready.get()
                run.warmer.warn()
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                run.slots.release()
                yield batch
        finally:
            run.leave()


class _Run:
    """One pass over a loader: a thread that reads it, up to `depth` batches ahead, and warms."""

    def __init__(self, source: Iterator[Any], find: Callable[[Any], Any], depth: int) -> None:
        self.ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self.slots = threading.Semaphore(depth)
        self._source = source
        self._find = find
        self.warmer = Warmer()
        self._is_left = threading.Event()
        threading.Thread(target=self._read, name="hybridps-lookahead", daemon=True).start()

    def leave(self) -> None:
        """Nothing is warmed from now on.

        The thread is not waited for: the loader may be waiting for data that never come, and nobody
        can call it back from there.
        """
        self._is_left.set()
        self.slots.release()

    def _read(self) -> None:
        try:
            while True:
                self.slots.acquire()
                if self._is_left.is_set():
                    return
                batch = next(self._source)
                found = self._find(batch)
                # First: a slow answer of the store must not keep the batch from the loop.
                self.ready.put((batch, None))
                if not self._is_left.is_set():
                    self.warmer.warm(found)
        except BaseException as error:  # noqa: BLE001
            # Raised in the thread of the loop, the end of the loader included.
            self.ready.put((None, error))
