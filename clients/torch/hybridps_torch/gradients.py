"""From rows that were read to gradients that are pushed.

`ReadRows` puts rows into the autograd graph. Its backward only notes (keys, gradient) in the
`Backward` of the pass that runs it; when that pass ends, autograd calls `Backward.finish`, which
makes one `apply_gradients` call per store, or hands everything to the layers' Optimizer.

Invariant: a pass that fails pushes nothing and leaves nothing behind. Only the callback queued in
autograd owns a `Backward`, so it dies with the pass.
"""

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from hybridps_torch.keys import Keys


class Store(Protocol):
    """The verbs used here of what `hybridps.connect` returns."""

    def apply_gradients(self, tables: dict[str, Any]) -> object:
        """One push for all tables of the call."""


class Accumulator(Protocol):
    """Takes the gradients of a pass instead of the store."""

    def accumulate(self, gradients: list["Gradient"]) -> None:
        """Keeps them until the user asks for the step."""


@dataclass(frozen=True, eq=False, slots=True)
class Read:
    """One read of one table: who read it decides where its gradient goes."""

    store: Store
    table: str
    keys: Keys
    padding: int | None
    # Weak, as kept by the layer: an Optimizer that is gone no longer accumulates.
    accumulator: weakref.ref[Accumulator] | None


@dataclass(frozen=True, eq=False, slots=True)
class Gradient:
    """float32[n, dim] on the host for the n keys of one read; keys may repeat."""

    store: Store
    table: str
    keys: Keys
    rows: torch.Tensor


def gradient_of(read: Read, gradient: torch.Tensor) -> Gradient:
    """Without the padding key, which torch never updates either.

    The copy from a device happens here, on the stream that computed the gradient; at the end of
    the pass another stream may be current.
    """
    keys = read.keys.reshape(-1)
    gradient = gradient.detach()
    if gradient.is_sparse:
        # A bag: one entry a position, in the order of the ids. Not coalesced on purpose.
        keys = keys[gradient._indices()[0].cpu().numpy()]
        rows = gradient._values().cpu()
    else:
        rows = gradient.cpu().reshape(-1, gradient.shape[-1])
    if read.padding is not None:
        kept = keys != read.padding
        if not kept.all():
            keys, rows = keys[kept], rows[torch.from_numpy(kept)]
    return Gradient(read.store, read.table, keys, rows)


def push(gradients: Iterable[Gradient]) -> None:
    """One `apply_gradients` call per store; it sums repeated keys in the order given here."""
    stores: dict[int, tuple[Store, dict[str, list[Gradient]]]] = {}
    for gradient in gradients:
        if gradient.keys.size:
            _, tables = stores.setdefault(id(gradient.store), (gradient.store, {}))
            tables.setdefault(gradient.table, []).append(gradient)
    for store, tables in stores.values():
        store.apply_gradients({table: _joined(parts) for table, parts in tables.items()})


def _joined(parts: list[Gradient]) -> tuple[Keys, NDArray[np.float32]]:
    rows = [np.ascontiguousarray(part.rows.numpy()) for part in parts]
    if len(parts) == 1:
        return parts[0].keys, rows[0]
    return np.concatenate([part.keys for part in parts]), np.concatenate(rows)


class Backward:
    """The gradients of one backward pass, in the order in which autograd ran its nodes."""

    # Threads run passes at the same time, and one pass runs on a thread per device.
    _lock = threading.Lock()
    _running: weakref.WeakValueDictionary[int, "Backward"] = weakref.WeakValueDictionary()

    def __init__(self) -> None:
        self._noted: list[tuple[Read, Gradient]] = []

    @classmethod
    def current(cls) -> "Backward":
        """That of the pass that runs the calling node."""
        with cls._lock:
            task = torch._C._current_graph_task_id()
            current = cls._running.get(task)
            if current is None:
                current = cls._running[task] = cls()
                engine: Any = torch.autograd.Variable._execution_engine
                engine.queue_callback(current.finish)
            return current

    def note(self, read: Read, gradient: torch.Tensor) -> None:
        """Remembers what `finish` will push."""
        self._noted.append((read, gradient_of(read, gradient)))

    def finish(self) -> None:
        """Called by autograd after the last node of the pass, never after a failure."""
        noted, self._noted = self._noted, []
        waiting: dict[int, tuple[Accumulator, list[Gradient]]] = {}
        due = []
        for read, gradient in noted:
            accumulator = read.accumulator and read.accumulator()
            if accumulator is None:
                due.append(gradient)
            else:
                waiting.setdefault(id(accumulator), (accumulator, []))[1].append(gradient)
        for accumulator, gradients in waiting.values():
            accumulator.accumulate(gradients)
        push(due)


class ReadRows(torch.autograd.Function):
    """Rows as a tensor of the graph. The anchor, an empty parameter, is what makes autograd visit."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, rows: NDArray[np.float32], device: torch.device, read: Read
    ) -> torch.Tensor:
        ctx.anchor, ctx.read = anchor, read
        return torch.from_numpy(rows).to(device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        Backward.current().note(ctx.read, gradient)
        # Not None: wrappers that wait for every parameter's gradient (DDP) would wait for ever.
        return torch.zeros_like(ctx.anchor), None, None, None
