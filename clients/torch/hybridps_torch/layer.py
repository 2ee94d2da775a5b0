"""What all layers share: the store, the tables, reading them, and copies that share the table.

No rows live here. `train()` reads insert and count, `eval()` reads do neither; the mode of the
layer is the only switch, `torch.no_grad()` is not one.
"""

import copy
import threading
import weakref
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from hybridps.client.connect import connect
from hybridps.errors import BadInputError, TableMismatchError
from hybridps_torch.gradients import Accumulator, Read, ReadRows
from hybridps_torch.keys import Keys

# Stores of this process by URL, for layers that arrive by pickle. Weak: users close their stores.
_stores: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()


def _store_at(url: str) -> Any:
    """The store of that URL in this process, connected if need be."""
    with _stores_lock:
        ps = _stores.get(url)
        if ps is None:
            ps = _stores[url] = connect(url)
        return ps


class Layer(nn.Module):
    """Reads tables of one store by feature; each feature names its table.

    A pickled layer carries the URL, not the connection: it connects anew, with the default
    settings, where it is unpickled in another process.
    """

    def __init__(self, ps: Any, specs: Mapping[str, Any]) -> None:
        super().__init__()
        self._ps = ps
        self._dims = {feature: int(spec.dim) for feature, spec in specs.items()}
        self.tables = {feature: str(spec.name) for feature, spec in specs.items()}
        for spec in specs.values():
            ps.create_table(spec)
        # Empty: it ties the rows to autograd, and requires_grad_(False) on a model freezes it too.
        self.anchor = nn.Parameter(torch.empty(0))
        # Weak: an Optimizer that is gone no longer accumulates.
        self._accumulator: weakref.ref[Accumulator] | None = None
        with _stores_lock:
            _stores[str(ps.url)] = ps

    @property
    def ps(self) -> Any:
        """The store, as given."""
        return self._ps

    @property
    def accumulator(self) -> Accumulator | None:
        """The Optimizer of this layer, while it exists."""
        return None if self._accumulator is None else self._accumulator()

    def accumulate_in(self, accumulator: Accumulator) -> None:
        """From now on its gradients go there, for as long as somebody holds it."""
        self._accumulator = weakref.ref(accumulator)

    def _read(
        self, features: Mapping[str, tuple[Keys, torch.device]], padding: int | None = None
    ) -> dict[str, Tensor]:
        """float32[keys.shape + (dim,)] by feature, from one call for all tables."""
        keys_of: dict[str, list[Keys]] = {}
        for feature, (keys, _) in features.items():
            keys_of.setdefault(self.tables[feature], []).append(keys.reshape(-1))
        batch = {t: k[0] if len(k) == 1 else np.concatenate(k) for t, k in keys_of.items()}
        rows = (self._ps.lookup_or_insert if self.training else self._ps.lookup)(batch)
        used = dict.fromkeys(batch, 0)
        result = {}
        for feature, (keys, device) in features.items():
            table = self.tables[feature]
            part = rows[table][used[table] : used[table] + keys.size]
            used[table] += keys.size
            shaped = part.reshape(*keys.shape, self._dims[feature])
            if self.training:
                read = Read(self, table, keys, padding)
                result[feature] = ReadRows.apply(self.anchor, shaped, device, read)
            else:
                result[feature] = torch.from_numpy(shaped).to(device)
        return result

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
        clone.__dict__.update(copy.deepcopy(self.__dict__ | {"_accumulator": None}, memo))
        return clone

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_accumulator": None, "_ps": str(self._ps.url)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        restore: Any = super().__setstate__
        restore(state | {"_ps": _store_at(state["_ps"])})

    def extra_repr(self) -> str:
        """As "table='item', dim=16"."""
        return ", ".join(f"table={self.tables[f]!r}, dim={dim}" for f, dim in self._dims.items())


def unknown_feature(feature: object, known: Mapping[str, object]) -> BadInputError:
    """The error for a feature that a collection does not have."""
    return BadInputError(f"feature {feature!r} is not in this collection; it has {sorted(known)}")
