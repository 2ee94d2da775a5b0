"""One read for all features of a layer: one call to each server, rows back by feature.

Padding is not read: its rows are zeros, and no store ever hears of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridps.layers.ids import Patterns, is_kept

Rows = NDArray[np.float32]


class Purpose(Enum):
    """What a read is for."""

    TRAINING = "training"
    """Absent keys are inserted, each occurrence counts."""
    AGAIN = "again"
    """The same read once more, for a step that has counted it: the same rows, nothing counted."""
    INFERENCE = "inference"
    """Nothing is inserted or counted; absent keys give zeros."""


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """The ids of one feature, of any shape, and the table they are read from."""

    spec: Any
    ids: Patterns
    padding: int | None = None


def read(ps: Any, requests: Mapping[str, Request], purpose: Purpose) -> dict[str, Rows]:
    """float32[ids.shape + (dim,)] by feature; features may share a table.

    Cost: ids of features that share a table are concatenated; rows are not copied, except those of
    a feature in whose ids there is padding.
    """
    kept = {name: is_kept(request.ids, request.padding) for name, request in requests.items()}
    parts: dict[str, list[Patterns]] = {}
    specs: dict[str, Any] = {}
    for name, request in requests.items():
        ids = request.ids.reshape(-1) if kept[name] is None else request.ids[kept[name]]
        parts.setdefault(request.spec.name, []).append(ids)
        specs[request.spec.name] = request.spec
    batch = {t: part[0] if len(part) == 1 else np.concatenate(part) for t, part in parts.items()}
    rows = _rows(ps, batch, specs, purpose)
    used = dict.fromkeys(batch, 0)
    result = {}
    for name, request in requests.items():
        table, is_read = request.spec.name, kept[name]
        count = request.ids.size if is_read is None else int(np.count_nonzero(is_read))
        part = rows[table][used[table] : used[table] + count]
        used[table] += count
        shape = (*request.ids.shape, part.shape[-1])
        result[name] = part.reshape(shape) if is_read is None else _padded(part, is_read, shape)
    return result


def _rows(
    ps: Any, batch: Mapping[str, Patterns], specs: Mapping[str, Any], purpose: Purpose
) -> Mapping[str, Rows]:
    if purpose is Purpose.TRAINING:
        inserted: Mapping[str, Rows] = ps.lookup_or_insert(batch)
        return inserted
    if purpose is Purpose.INFERENCE:
        looked_up: Mapping[str, Rows] = ps.lookup(batch)
        return looked_up
    found = ps.lookup(batch, return_found=True)
    return {table: _completed(specs[table], batch[table], *found[table]) for table in batch}


def _completed(spec: Any, ids: Patterns, rows: Rows, found: NDArray[np.bool_]) -> Rows:
    """What `lookup_or_insert` gives: keys that have no row, as those not admitted, start afresh."""
    if not found.all():
        rows[~found] = spec.initial_rows(ids[~found])
    return rows


def _padded(part: Rows, is_read: NDArray[np.bool_], shape: tuple[int, ...]) -> Rows:
    rows = np.zeros(shape, np.float32)
    rows[is_read] = part
    return rows
