"""Gradients of a backward pass, of any number of layers, as one push to each store."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridps.layers.ids import Patterns, is_kept


@dataclass(frozen=True, eq=False, slots=True)
class Gradient:
    """n ids of one table, which may repeat, and a gradient [n, dim] for each.

    `rows` is float32 on the host when it is pushed; until then it may be a framework's tensor.
    """

    ps: Any
    table: str
    ids: Patterns
    rows: Any


def without_padding(
    ids: Patterns, rows: NDArray[np.float32], padding: int | None
) -> tuple[Patterns, NDArray[np.float32]]:
    """Flat ids and their gradients, padding left out."""
    ids = ids.reshape(-1)
    rows = rows.reshape(ids.size, -1)
    kept = is_kept(ids, padding)
    return (ids, rows) if kept is None else (ids[kept], rows[kept])


def push(gradients: Iterable[Gradient]) -> None:
    """One `apply_gradients` call to each store; it sums repeated ids in the order given here.

    Gradients without ids make no call. Raises what the call raises; with several stores those
    before the failing one have been pushed.
    """
    stores: dict[int, tuple[Any, dict[str, list[Gradient]]]] = {}
    for gradient in gradients:
        if gradient.ids.size:
            _, tables = stores.setdefault(id(gradient.ps), (gradient.ps, {}))
            tables.setdefault(gradient.table, []).append(gradient)
    for ps, tables in stores.values():
        ps.apply_gradients({table: _joined(parts) for table, parts in tables.items()})


def _joined(parts: list[Gradient]) -> tuple[Patterns, NDArray[np.float32]]:
    if len(parts) == 1:
        return parts[0].ids, parts[0].rows
    return np.concatenate([part.ids for part in parts]), np.concatenate(
        [part.rows for part in parts]
    )
