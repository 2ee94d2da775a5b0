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
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.function import once_differentiable

from hybridps_torch.keys import Keys


@dataclass(frozen=True, eq=False, slots=True)
class Gradient:
    """float32[n, dim] for n keys, which may repeat. On the host, unless an Optimizer has it."""

    ps: Any
    table: str
    keys: Keys
    rows: torch.Tensor


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


@dataclass(frozen=True, eq=False, slots=True)
class Read:
    """One read of one table."""

    reader: Reader
    table: str
    keys: Keys
    padding: int | None


def push(gradients: Iterable[Gradient]) -> None:
    """One `apply_gradients` call per store; it sums repeated keys in the order given here."""
    stores: dict[int, tuple[Any, dict[str, list[Gradient]]]] = {}
    for gradient in gradients:
        if gradient.keys.size:
            _, tables = stores.setdefault(id(gradient.ps), (gradient.ps, {}))
            tables.setdefault(gradient.table, []).append(gradient)
    for ps, tables in stores.values():
        ps.apply_gradients({table: _joined(parts) for table, parts in tables.items()})


def _joined(parts: list[Gradient]) -> tuple[Keys, NDArray[np.float32]]:
    rows = [np.ascontiguousarray(part.rows.cpu().numpy()) for part in parts]
    if len(parts) == 1:
        return parts[0].keys, rows[0]
    return np.concatenate([part.keys for part in parts]), np.concatenate(rows)


def _running_pass() -> int:
    """Number of the pass that runs the caller, never used again; -1 outside of any."""
    return torch._C._current_graph_task_id()  # noqa: SLF001 - torch has no public name for it


class Backward:
    """The gradients of one backward pass, in the order in which autograd ran its nodes."""

    # Threads run passes at the same time, and one pass runs on a thread per device.
    _lock = threading.Lock()
    _running: ClassVar = weakref.WeakValueDictionary[int, "Backward"]()

    def __init__(self) -> None:
        self._due: list[Gradient] = []
        self._waiting: dict[Accumulator, list[Gradient]] = {}

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

    def note(self, read: Read, gradient: torch.Tensor) -> None:
        """Keeps what `finish` will push; without the padding key, which torch never updates."""
        keys, rows = read.keys.reshape(-1), gradient.detach()
        if rows.is_sparse:
            # A bag: one entry a position, in the order of the ids. Not coalesced on purpose.
            places = rows._indices()[0].cpu().numpy()  # noqa: SLF001 - the public ones coalesce
            keys, rows = keys[places], rows._values()  # noqa: SLF001
        else:
            rows = rows.reshape(-1, rows.shape[-1])
        if read.padding is not None:
            kept = keys != read.padding
            keys, rows = keys[kept], rows[torch.from_numpy(kept).to(rows.device)]
        accumulator = read.reader.accumulator
        if accumulator is None:
            # Copied here, where the stream that computed it is current; `finish` may see another.
            self._due.append(Gradient(read.reader.ps, read.table, keys, rows.cpu()))
        else:
            # Cloned: a scaler divides it in place, and it may be someone else's `.grad` as well.
            rows = rows.clone(memory_format=torch.contiguous_format)
            waiting = self._waiting.setdefault(accumulator, [])
            waiting.append(Gradient(read.reader.ps, read.table, keys, rows))

    def finish(self) -> None:
        """Called by autograd after the last node of the pass, never after a failure."""
        for accumulator, gradients in self._waiting.items():
            accumulator.accumulate(gradients)
        push(self._due)


class ReadRows(torch.autograd.Function):
    """Rows as a tensor of the graph. The anchor, an empty parameter, makes autograd visit it."""

    @staticmethod
    def forward(
        ctx: Any, anchor: torch.Tensor, rows: NDArray[np.float32], device: torch.device, read: Read
    ) -> torch.Tensor:
        """The rows, on the device."""
        ctx.anchor, ctx.read = anchor, read
        # A read within a backward pass is a checkpointed segment being run again; the pass nested
        # in it is part of the outer one. Weak: the graph may outlive that pass.
        ctx.outer = weakref.ref(Backward.current()) if _running_pass() >= 0 else None
        return torch.from_numpy(rows).to(device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Notes the gradient; torch refuses a second derivative."""
        outer: Backward | None = ctx.outer and ctx.outer()
        (outer or Backward.current()).note(ctx.read, gradient)
        # Not None: wrappers that wait for every parameter's gradient (DDP) would wait for ever.
        return torch.zeros_like(ctx.anchor), None, None, None
