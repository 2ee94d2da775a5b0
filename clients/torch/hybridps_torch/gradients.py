"""From rows that were read to gradients that are pushed.

`ReadRows` puts rows into the autograd graph, tied to it by the layer's anchor, a parameter. Its
backward only notes (ids, gradient) in the `Backward` of the pass that runs it. When the pass
accumulates into the anchor, what was noted for it is due; when the pass ends, autograd calls
`Backward.finish`, which makes one `apply_gradients` call per store, or hands what is due to the
layers' Optimizer. `torch.autograd.grad` accumulates into nothing, so nothing is due.

Invariant: a pass that fails pushes nothing and leaves nothing behind. Only the callback queued in
autograd owns a `Backward`, so it dies with the pass.
"""

import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed
from torch.autograd.function import once_differentiable

from hybridps.layers import gradients as shared
from hybridps.layers.gradients import Gradient
from hybridps.layers.ids import Patterns, is_kept


class Accumulator(Protocol):
    """Takes the gradients of a pass instead of the store."""

    def accumulate(self, gradients: list[Gradient]) -> None:
        """Keeps them until the user asks for the step."""


class Reader(Protocol):
    """The layer that read, asked when its gradient arrives."""

    @property
    def ps(self) -> Any:
        """The store."""

    @property
    def accumulator(self) -> Accumulator | None:
        """Where the gradients wait, if not pushed at the end of the pass."""

    @property
    def reduce(self) -> str:
        """How gradients of distributed ranks are combined: "mean" or "sum"."""


@dataclass(frozen=True, eq=False, slots=True)
class Read:
    """One read of one table."""

    reader: Reader
    table: str
    ids: Patterns
    padding: int | None


def push(gradients: Iterable[Gradient]) -> None:
    """One `apply_gradients` call per store, of gradients that are tensors on any device."""
    shared.push(replace(g, rows=np.ascontiguousarray(g.rows.cpu().numpy())) for g in gradients)


def is_recomputing() -> bool:
    """Whether a backward pass runs the caller: a checkpointed segment is being run again."""
    return _running_pass() >= 0


def _running_pass() -> int:
    """Number of the pass that runs the caller, never used again; -1 outside of any."""
    return torch._C._current_graph_task_id()  # noqa: SLF001 - torch has no public name for it


class Backward:
    """The gradients of one backward pass, in the order in which autograd ran its nodes."""

    # Threads run passes at the same time, and one pass runs on a thread per device.
    _lock = threading.Lock()
    _running: ClassVar = weakref.WeakValueDictionary[int, "Backward"]()

    def __init__(self) -> None:
        self._noted: list[tuple[torch.Tensor, Accumulator | None, Gradient]] = []
        self._due: set[int] = set()

    @classmethod
    def current(cls) -> "Backward":
        """That of the pass which runs the caller."""
        number = _running_pass()
        with cls._lock:
            current: Backward | None = cls._running.get(number)
            if current is None:
                current = cls._running[number] = cls()
                engine: Any = torch.autograd.Variable._execution_engine  # noqa: SLF001 - as above
                engine.queue_callback(current.finish)
            return current

    def adopt(self) -> None:
        """The pass that runs the caller, nested in this one, is part of this one."""
        with self._lock:
            self._running[_running_pass()] = self

    @classmethod
    def accumulated(cls, anchor: torch.Tensor) -> None:
        """Called by autograd when the running pass has accumulated into an anchor."""
        with cls._lock:
            current: Backward | None = cls._running.get(_running_pass())
        if current is not None:
            current.fall_due(anchor)
        # The anchor has nothing to learn. Without a gradient it takes no part in the norms, steps
        # and scales that optimizers compute over all parameters.
        anchor.grad = None

    def fall_due(self, anchor: torch.Tensor) -> None:
        """What is noted for the anchor is to be pushed."""
        self._due.add(id(anchor))

    def note(self, anchor: torch.Tensor, read: Read, gradient: torch.Tensor) -> None:
        """Keeps what `finish` will push if the anchor is accumulated into."""
        ids, rows = read.ids.reshape(-1), gradient.detach()
        if rows.is_sparse:
            # A bag: one entry a position, in the order of the ids. Not coalesced on purpose.
            places = rows._indices()[0].cpu().numpy()  # noqa: SLF001 - the public ones coalesce
            ids, rows = ids[places], rows._values()  # noqa: SLF001
        else:
            rows = rows.reshape(-1, rows.shape[-1])
        kept = is_kept(ids, read.padding)
        if kept is not None:
            ids, rows = ids[kept], rows[torch.from_numpy(kept).to(rows.device)]
        accumulator = read.reader.accumulator
        if accumulator is None:
            # Brought to the host here, where the stream that computed it is current; `finish` may
            # see another.
            rows = rows.cpu()
        else:
            # Cloned: a scaler divides it in place, and it may be someone else's `.grad` as well.
            rows = rows.clone(memory_format=torch.contiguous_format)
        rows = _averaged(rows, read.reader.reduce)
        if not anchor.is_leaf:
            # A wrapper put something computed in its place, into which nothing accumulates.
            self.fall_due(anchor)
        self._noted.append((anchor, accumulator, Gradient(read.reader.ps, read.table, ids, rows)))

    def finish(self) -> None:
        """Called by autograd after the last node of the pass, never after a failure."""
        waiting: dict[Accumulator | None, list[Gradient]] = {}
        for anchor, accumulator, gradient in self._noted:
            if id(anchor) in self._due:
                waiting.setdefault(accumulator, []).append(gradient)
        due = waiting.pop(None, [])
        for accumulator, gradients in waiting.items():
            if accumulator is not None:
                accumulator.accumulate(gradients)
        push(due)


def _averaged(rows: torch.Tensor, reduce: str) -> torch.Tensor:
    """This rank's share of the gradient of the joint batch, as DDP has it for dense parameters."""
    is_distributed = distributed.is_available() and distributed.is_initialized()
    if reduce == "sum" or not is_distributed or distributed.get_world_size() == 1:
        return rows
    return rows / distributed.get_world_size()


class ReadRows(torch.autograd.Function):
    """Rows as a tensor of the graph. The anchor makes autograd visit it."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, rows: NDArray[np.float32], device: torch.device, read: Read
    ) -> torch.Tensor:
        """The rows, on the device."""
        ctx.anchor, ctx.read = anchor, read
        # The pass nested in a pass that runs a checkpointed segment again is part of the outer one.
        # Weak: the graph may outlive that pass.
        ctx.outer = weakref.ref(Backward.current()) if is_recomputing() else None
        return torch.from_numpy(rows).to(device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Notes the gradient; torch refuses a second derivative."""
        outer: Backward | None = ctx.outer and ctx.outer()
        if outer is not None:
            outer.adopt()
        (outer or Backward.current()).note(ctx.anchor, ctx.read, gradient)
        # Not None: wrappers that wait for every parameter's gradient (DDP) would wait for ever.
        return torch.zeros_like(ctx.anchor), None, None, None
