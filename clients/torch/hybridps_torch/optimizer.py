"""Steps under the user's control: gradient accumulation and AMP.

The rule and its state live with the table; this only keeps gradients until the step. They hang on
placeholder parameters, because that is where torch.amp.GradScaler looks for them.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from hybridps.errors import BadInputError
from hybridps_torch.gradients import Gradient, push
from hybridps_torch.layer import Layer


class Optimizer(torch.optim.Optimizer):
    """Once it exists, backward passes of the model's layers only accumulate in it.

    Covers the layers that the model has now; of two Optimizers for one layer the newer counts.
    When the Optimizer is gone, backward passes push by themselves again.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if isinstance(module, Layer)]
        if not layers:
            raise BadInputError(
                f"{type(model).__name__} has no layer of hybridps_torch; nothing to optimize"
            )
        # torch refuses an empty list; the layers' own anchors are the dense optimizer's to hold.
        super().__init__([nn.Parameter(torch.empty(0))], {})
        self._lock = threading.Lock()
        self._waiting: list[tuple[Gradient, nn.Parameter]] = []
        for layer in layers:
            layer.accumulate_in(self)

    def accumulate(self, gradients: list[Gradient]) -> None:
        """Keeps one pass's gradients, each as the `.grad` of a placeholder of its shape."""
        with self._lock:
            for gradient in gradients:
                rows = gradient.rows
                # Costs no memory: one number, expanded. Same device, as the scaler wants.
                placeholder = nn.Parameter(torch.zeros((), device=rows.device).expand(rows.shape))
                placeholder.grad = rows
                self._waiting.append((gradient, placeholder))
                self.param_groups[0]["params"].append(placeholder)

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
            push(replace(g, rows=p.grad) for g, p in self._waiting if p.grad is not None)
            self._drop()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: ARG002 - torch's signature
        """Drops what was accumulated."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        self._waiting.clear()
        del self.param_groups[0]["params"][1:]

    def state_dict(self) -> dict[str, Any]:
        """Empty: all state is in the tables."""
        return {"state": {}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load; see `state_dict`."""
