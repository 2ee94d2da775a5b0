"""Steps under the user's control: gradient accumulation, AMP, learning rate schedules.

The rule and its state live with the table; this keeps gradients until the step, and the table's
learning rate. Gradients hang on placeholder parameters, because that is where
torch.amp.GradScaler looks for them.
"""

import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from hybridps.errors import BadInputError
from hybridps.layers.gradients import Gradient
from hybridps_torch.gradients import push
from hybridps_torch.layer import Layer

# Gradients that wait for a step, in bytes, before the user is told that none comes.
PILE_BYTES: Final = 1 << 30


class _TableGroup(dict[str, Any]):
    """The parameter group of one table: setting its `lr` sets the table's learning rate."""

    def __init__(self, table: Any) -> None:
        super().__init__(params=[], lr=float(table.spec.optimizer.learning_rate), table=table.name)
        self._table = table
        self._rate = self["lr"]

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "lr":
            self._set(value)
        super().__setitem__(name, value)

    def settle(self) -> None:
        """Sets the table's rate if `lr` was changed past this class, as `dict.update` does."""
        if self["lr"] != self._rate:
            self._set(self["lr"])

    def _set(self, rate: Any) -> None:
        self._table.set_learning_rate(float(rate))
        self._rate = rate


class Optimizer(torch.optim.Optimizer):
    """Once it exists, backward passes of the model's layers only accumulate in it, until `close`.

    Covers the layers that the model has now; of two Optimizers for one layer the newer counts. The
    layers hold it: it goes on if nobody else does. It has one parameter group a table, whose `lr`
    is the table's learning rate: a scheduler of torch.optim.lr_scheduler that changes it, changes
    the table's, for all who train it.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, Layer)]
        if not layers:
            raise BadInputError(
                f"{type(model).__name__} has no layer of hybridps_torch; nothing to optimize"
            )
        places = {
            (id(layer.ps), name): layer.ps for layer in layers for name in layer.tables.values()
        }
        self._groups = {at: _TableGroup(ps.table(at[1])) for at, ps in places.items()}
        super().__init__(list(self._groups.values()), {})
        self._lock = threading.Lock()
        self._waiting: list[tuple[Gradient, nn.Parameter]] = []
        self._waiting_bytes = 0
        self._layers = layers
        for layer in layers:
            layer.accumulate_in(self)

    def close(self) -> None:
        """Drops what was accumulated; the layers push at the end of each pass again."""
        for layer in self._layers:
            if layer.accumulator is self:
                layer.accumulate_in(None)
        self.zero_grad()

    def accumulate(self, gradients: list[Gradient]) -> None:
        """Keeps one pass's gradients, each as the `.grad` of a placeholder of its shape."""
        with self._lock:
            before = self._waiting_bytes
            for gradient in gradients:
                rows = gradient.rows
                # Costs no memory: one number, expanded. Same device, as the scaler wants.
                placeholder = nn.Parameter(torch.zeros((), device=rows.device).expand(rows.shape))
                placeholder.grad = rows
                self._waiting.append((gradient, placeholder))
                self._waiting_bytes += rows.nbytes
                group = self._groups[id(gradient.ps), gradient.table]
                group["params"].append(placeholder)
            passed = before < PILE_BYTES <= self._waiting_bytes
        if passed:
            tables = sorted({table for _, table in self._groups})
            warnings.warn(
                f"tables {tables}: {self._waiting_bytes / 2**30:.1f} GiB of gradients wait for this"
                " Optimizer's step, and more come with each backward pass: call step() or"
                " zero_grad(), or close() to have passes push by themselves",
                UserWarning,
                stacklevel=2,
            )

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Pushes what was accumulated, in one call per store, and keeps nothing of it.

        A push that raises leaves the gradients in place: call step again, or zero_grad, which is
        right after a DeadlineError, because that push may have been applied.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lock:
            for group in self._groups.values():
                group.settle()
            push(replace(g, rows=p.grad) for g, p in self._waiting if p.grad is not None)
            self._drop()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 - torch's signature
        """Drops what was accumulated."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = 0
        for group in self._groups.values():
            del group["params"][:]

    def state_dict(self) -> dict[str, Any]:
        """The tables' learning rates and what schedulers keep beside them; no slots."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self._groups.values()]
        return {"state": {}, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Sets the learning rates of the tables that the state names, and what goes with them."""
        saved = {group["table"]: group for group in state_dict["param_groups"]}
        for group in self._groups.values():
            for name, value in saved.get(group["table"], {}).items():
                group[name] = value
