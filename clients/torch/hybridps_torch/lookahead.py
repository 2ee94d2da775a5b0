"""Look-ahead over a loader: the rows of coming batches are warmed while the current one trains.

Never inserts, counts or changes a batch, so training results stay identical.
"""

import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from hybridps.errors import BadInputError
from hybridps_torch.keys import Keys, as_keys
from hybridps_torch.layer import Layer
from hybridps_torch.layers import EmbeddingCollection

# A store, by identity, and a table of it.
Place = tuple[int, str]
Ids = Mapping[str, torch.Tensor] | torch.Tensor


def prefetch(
    loader: Iterable[Any],
    model: nn.Module,
    depth: int = 2,
    ids: Callable[[Any], Ids] | None = None,
) -> "LookAhead":
    """The same batches as `loader`, read up to `depth` ahead by a thread that warms their rows.

    Args: ids: batch -> its ids by feature or table name, or one tensor if the model has one
        layer. None finds them: dicts keyed by feature of a collection, by table, or by the name
        of a layer in the model; with one layer, else, the first tensor of integers in the batch.
    Note: the loader runs ahead, so a data set that draws from the global random generator in this
        process draws at other moments; loaders with workers or a generator of their own do not.
    Raises: BadInputError, at the first batch, when no ids are found in it.
    """
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise BadInputError(f"depth is {depth!r}; give an int of at least 1")
    return LookAhead(loader, _Finder(model), depth, ids)


class LookAhead:
    """Iterable over the batches; everything else is the loader's (`len`, `dataset` ...)."""

    def __init__(
        self,
        loader: Iterable[Any],
        finder: "_Finder",
        depth: int,
        ids: Callable[[Any], Ids] | None,
    ) -> None:
        self._loader = loader
        self._finder = finder
        self._depth = depth
        self._ids = ids

    def __len__(self) -> int:
        length: int = len(self._loader)  # type: ignore[arg-type]
        return length

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Any]:
        # In the caller's thread: a loader forks its workers here.
        source = iter(self._loader)
        ready: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        slots = threading.Semaphore(self._depth)
        stop = threading.Event()
        thread = threading.Thread(
            target=self._run_ahead, args=(source, ready, slots, stop), daemon=True
        )
        thread.start()
        try:
            while True:
                batch, error = ready.get()
                if isinstance(error, StopIteration):
                    return
                if error is not None:
                    raise error
                slots.release()
                yield batch
        finally:
            stop.set()
            slots.release()
            thread.join()

    def _run_ahead(
        self,
        source: Iterator[Any],
        ready: "queue.SimpleQueue[tuple[Any, BaseException | None]]",
        slots: threading.Semaphore,
        stop: threading.Event,
    ) -> None:
        try:
            while True:
                slots.acquire()
                if stop.is_set():
                    return
                batch = next(source)
                self._finder.warm(batch if self._ids is None else self._ids(batch))
                ready.put((batch, None))
        except BaseException as error:  # noqa: BLE001
            # Raised in the consumer's thread, the end of the loader included.
            ready.put((None, error))


class _Finder:
    """Knows under which names the ids of a model's layers come, and asks the stores to warm."""

    def __init__(self, model: nn.Module) -> None:
        layers = [(path, m) for path, m in model.named_modules() if isinstance(m, Layer)]
        if not layers:
            raise BadInputError(
                f"{type(model).__name__} has no layer of hybridps_torch; nothing to look ahead for"
            )
        self._names: dict[str, set[Place]] = {}
        self._stores = {id(layer.ps): layer.ps for _, layer in layers}
        for path, layer in layers:
            self._add(path.rpartition(".")[2], layer)
        places = [(id(m.ps), table) for _, m in layers for table in m.tables.values()]
        self._only = places[0] if len(places) == 1 else None

    def _add(self, layer_name: str, layer: Layer) -> None:
        for feature, table in layer.tables.items():
            alias = feature if isinstance(layer, EmbeddingCollection) else layer_name
            for name in {alias, table}:
                self._names.setdefault(name, set()).add((id(layer.ps), table))

    def warm(self, batch: Any) -> None:
        """One `prefetch` call per store for the ids in the batch."""
        found = self._find(batch)
        for store, ps in self._stores.items():
            tables = {table: keys for (owner, table), keys in found.items() if owner == store}
            if tables:
                ps.prefetch(tables)

    def _find(self, batch: Any) -> dict[Place, Keys]:
        named = list(self._named(batch))
        if not named and self._only is not None:
            named = [(self._only, tensor) for tensor in itertools.islice(_integers(batch), 1)]
        if not named:
            raise BadInputError(
                f"no ids found in a batch of type {type(batch).__name__};"
                f" give ids=, a function of the batch -> dict keyed by any of {sorted(self._names)}"
            )
        keys: dict[Place, list[Keys]] = {}
        for place, ids in named:
            keys.setdefault(place, []).append(as_keys(ids, place[1]).reshape(-1))
        return {place: np.concatenate(parts) for place, parts in keys.items()}

    def _named(self, batch: Any) -> Iterator[tuple[Place, torch.Tensor]]:
        if isinstance(batch, Mapping):
            for name, value in batch.items():
                if isinstance(value, torch.Tensor):
                    yield from ((place, value) for place in sorted(self._names.get(name, ())))
                else:
                    yield from self._named(value)
        elif isinstance(batch, (list, tuple)):
            for part in batch:
                yield from self._named(part)


def _integers(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        if not (batch.is_floating_point() or batch.is_complex() or batch.dtype == torch.bool):
            yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _integers(part)
