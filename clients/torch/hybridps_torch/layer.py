"""What all layers share: the store, the tables, reading them, and copies that share the table.

No rows live here. `train()` reads insert and count, `eval()` reads do neither; the mode of the
layer is the only switch, `torch.no_grad()` is not one.
"""

import copy
import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from hybridps.errors import BadInputError, TableMismatchError
from hybridps.layers.ids import Patterns, as_padding
from hybridps.layers.loading import load_rows
from hybridps.layers.reading import Purpose, Request, read
from hybridps.layers.stores import remember, store_at
from hybridps_torch.gradients import Accumulator, Backward, Read, ReadRows, is_recomputing

Forward = TypeVar("Forward", bound=Callable[..., Any])

_REDUCTIONS = ("mean", "sum")


def eager(forward: Forward) -> Forward:
    """A forward that `torch.compile` leaves to Python, with a graph break before and after."""
    # Not torch.compiler.disable: it would import the compiler, seconds long, into every process.
    broken = torch._disable_dynamo(forward)  # noqa: SLF001 - imports the compiler when called

    @functools.wraps(forward)
    def chosen(*args: Any, **options: Any) -> Any:
        return (broken if torch.compiler.is_compiling() else forward)(*args, **options)

    return chosen  # type: ignore[return-value]


class Layer(nn.Module):
    """Reads tables of one store by feature; each feature names its table.

    A pickled layer carries the URL, not the connection: it connects anew, with the default
    settings, where it is unpickled in another process.

    Args: padding: by feature, the id that reads as zeros and is neither trained nor stored.
        reduce: where torch.distributed is initialised, "mean" pushes each rank's gradient divided
        by the number of ranks, as DistributedDataParallel averages; "sum" pushes it whole.
    """

    has_features = True

    def __init__(
        self, ps: Any, specs: Mapping[str, Any], padding: Mapping[str, int | None], reduce: str
    ) -> None:
        super().__init__()
        if reduce not in _REDUCTIONS:
            names = [spec.name for spec in specs.values()]
            raise BadInputError(f"tables {names}: reduce is {reduce!r}; give one of {_REDUCTIONS}")
        self._padding = {f: as_padding(padding.get(f), s.name) for f, s in specs.items()}
        self._ps = ps
        self._specs = dict(specs)
        self.tables = {feature: str(spec.name) for feature, spec in specs.items()}
        self.reduce = reduce
        for spec in specs.values():
            ps.create_table(spec)
        # Ties the rows to autograd, and requires_grad_(False) on a model freezes it too. One zero,
        # because torch has no norms of empty tensors.
        self.anchor = nn.Parameter(torch.zeros(1))
        self._hooked: weakref.ref[Tensor] | None = None
        self._accumulator: Accumulator | None = None
        remember(ps)

    @property
    def ps(self) -> Any:
        """The store, as given."""
        return self._ps

    @property
    def accumulator(self) -> Accumulator | None:
        """The Optimizer of this layer, until it is closed."""
        return self._accumulator

    def accumulate_in(self, accumulator: Accumulator | None) -> None:
        """From now on its gradients go there; None: they are pushed at the end of each pass."""
        self._accumulator = accumulator

    def _read(self, features: Mapping[str, tuple[Patterns, torch.device]]) -> dict[str, Tensor]:
        """float32[ids.shape + (dim,)] by feature, from one call for all tables."""
        requests = {
            feature: Request(self._specs[feature], patterns, self._padding[feature])
            for feature, (patterns, _) in features.items()
        }
        purpose = Purpose.INFERENCE
        if self.training:
            purpose = Purpose.AGAIN if is_recomputing() else Purpose.TRAINING
        rows = read(self._ps, requests, purpose)
        if not self.training:
            return {f: torch.from_numpy(rows[f]).to(device) for f, (_, device) in features.items()}
        self._hook()
        result = {}
        for feature, (patterns, device) in features.items():
            noted = Read(self, self.tables[feature], patterns, self._padding[feature])
            result[feature] = ReadRows.apply(self.anchor, rows[feature], device, noted)
        return result

    def _hook(self) -> None:
        """Has autograd tell when a pass accumulates into the anchor, which wrappers may replace."""
        if self._hooked is not None and self._hooked() is self.anchor:
            return
        if self.anchor.is_leaf and self.anchor.requires_grad:
            self.anchor.register_post_accumulate_grad_hook(Backward.accumulated)
            self._hooked = weakref.ref(self.anchor)

    def _load(self, feature: str, keys: Any, rows: Any) -> None:
        """Sets the values of many keys; padding stays out."""
        if isinstance(rows, Tensor) and rows.dtype == torch.bfloat16:
            # NumPy has no bfloat16; float32 holds it exactly.
            rows = rows.float()
        load_rows(self._ps, self._specs[feature], keys, rows, self._padding[feature])

    def get_extra_state(self) -> dict[str, Any]:
        """What `state_dict` holds of this layer: names. The rows are the store's to keep."""
        return {"tables": dict(self.tables)}

    def set_extra_state(self, state: Any) -> None:
        """Raises TableMismatchError for the state of a layer on other tables."""
        saved = state.get("tables") if isinstance(state, dict) else state
        if saved != self.tables:
            raise TableMismatchError(
                f"the state_dict is of a layer on {saved!r}, this layer is on {self.tables!r};"
                " build the layer with the spec of the saved table"
            )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        del destination[prefix + "anchor"]

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        state_dict = {**state_dict, prefix + "anchor": self.anchor}
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self._ps)] = self._ps
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        # A copy belongs to no Optimizer: that one was built for another model.
        alone = self.__dict__ | {"_accumulator": None, "_hooked": None}
        clone.__dict__.update(copy.deepcopy(alone, memo))
        return clone

    def __getstate__(self) -> dict[str, Any]:
        alone = {"_accumulator": None, "_hooked": None, "_ps": str(self._ps.url)}
        return self.__dict__ | alone

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Any = super().__setstate__
        restore(state | {"_ps": store_at(state["_ps"])})

    def extra_repr(self) -> str:
        """As "table='item', dim=16"."""
        return ", ".join(f"table={s.name!r}, dim={s.dim}" for s in self._specs.values())
