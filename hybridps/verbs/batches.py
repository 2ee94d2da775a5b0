"""Checks of the arrays of a call, whole, before anything is sent.

Errors name the table, what was given and the cast to write. Results are C-contiguous and flat:
keys uint64[n], rows float32[n, dim], counts uint32[n]. They may share memory with the argument.
"""

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.keys import KeysLike, Shape, Tensor, as_keys
from hybridps.verbs.calls import Counts, Keys, Rows

RowsLike = ArrayLike
_COUNT_MAX: Final = (1 << 32) - 1
# Half a step beyond the largest float16, 65504: what rounds to infinity.
_FLOAT16_END: Final = 65520.0


@dataclass(frozen=True, slots=True)
class TableRef:
    """A table on all servers: its id on each, and what shapes its rows."""

    name: str
    ids: tuple[int, ...]
    dim: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The keys of one table in one call."""

    table: TableRef
    keys: Keys
    shape: Shape

    @property
    def rows_shape(self) -> Shape:
        """Shape of rows and gradients that belong to these keys."""
        return (*self.shape, self.table.dim)


def batch(table: TableRef, keys: KeysLike) -> Batch:
    """The keys of `table`, checked."""
    flat, shape = as_keys(keys, table.name)
    return Batch(table, flat, shape)


def as_rows(of: Batch, rows: RowsLike, what: str) -> Rows:
    """float32[n, dim] of `rows`: float32, float16 or bfloat16, of the right shape."""
    array = as_numbers(of, rows, what)
    if array.shape != of.rows_shape:
        raise BadInputError(
            f"table {of.table.name!r}: {what} have shape {array.shape}, keys have {of.shape}"
            f" and dim is {of.table.dim}; give {what} of shape {of.rows_shape}"
        )
    return np.ascontiguousarray(array).reshape(-1, of.table.dim)


def check_finite(of: Batch, rows: Rows, what: str) -> Rows:
    """The rows, all finite."""
    if not _core.is_finite(rows):
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise BadInputError(
            f"table {of.table.name!r}: {what} of key {of.keys[row]} hold {rows[row, column]} at"
            f" column {column}; only finite {what} are applied: find its source, clip or skip it"
        )
    return rows


def as_counts(of: Batch, counts: ArrayLike | None) -> Counts | None:
    """uint32[n] of `counts`; None means one per occurrence."""
    if counts is None:
        return None
    array = np.asarray(counts.numpy() if isinstance(counts, Tensor) else counts)
    name = of.table.name
    if array.dtype.kind not in "iu" and array.size:
        raise BadInputError(
            f"table {name!r}: counts are {array.dtype}; cast them with .astype(numpy.uint32)"
        )
    if array.shape != of.shape:
        raise BadInputError(
            f"table {name!r}: counts have shape {array.shape}; give one a key: {of.shape}"
        )
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= _COUNT_MAX:
        worst = array.min() if array.min() < 0 else array.max()
        raise BadInputError(f"table {name!r}: counts hold {worst}; give 0 to 2^32 - 1")
    return np.ascontiguousarray(array, dtype=np.uint32).reshape(-1)


def as_step(step: object) -> int | None:
    """A trainer's step: an int of 64 bits, or None."""
    if step is None:
        return None
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise BadInputError(f"step is {step!r}; give an int that grows from push to push")
    number: int = step.__index__()
    if not -(1 << 63) <= number < 1 << 63:
        raise BadInputError(f"step is {number}; give an int of 64 bits")
    return number


def check_reach(table: TableRef, keys: Keys, gradients: Rows) -> None:
    """Refuses sums of gradients that float16 would make infinite."""
    if not gradients.size or max(gradients.max(), -gradients.min()) < _FLOAT16_END:
        return
    row, column = np.argwhere(np.abs(gradients) >= _FLOAT16_END)[0]
    raise BadInputError(
        f"table {table.name!r}: the gradient of key {keys[row]} is {gradients[row, column]} at"
        f" column {column}, which float16 does not reach; clip it, or connect with"
        ' wire_dtype="bfloat16" or "float32"'
    )


def as_numbers(of: Batch, rows: RowsLike, what: str) -> NDArray[np.float32]:
    """float32 of `rows`, of any shape: float32, float16 or bfloat16, nothing else."""
    value: Any = rows
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        # NumPy has no bfloat16 of its own, so torch widens it; exact.
        if str(getattr(value, "dtype", "")) == "torch.bfloat16":
            value = cast("Any", value).float()
        value = value.numpy()
    array: NDArray[Any] = np.asarray(value)
    if array.dtype == np.float32 and array.dtype.isnative:
        return array
    if array.dtype.name in ("float32", "float16", "bfloat16"):
        return array.astype(np.float32)
    raise BadInputError(
        f"table {of.table.name!r}: {what} are {array.dtype}; give float32, float16 or bfloat16:"
        f" cast them with {what}.astype(numpy.float32) or, in torch, {what}.float()"
    )
