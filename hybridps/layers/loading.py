"""Pretrained rows into a table, in pieces that the smallest of stores takes."""

from typing import Any, Final

import numpy as np

from hybridps.errors import BadInputError
from hybridps.keys import as_keys, to_host
from hybridps.layers.gradients import without_padding

_PIECE_BYTES: Final = 1 << 20


def load_rows(ps: Any, spec: Any, keys: Any, rows: Any, padding: int | None) -> None:
    """Sets the values of keys, also of absent ones; the last repeat wins, padding is left out.

    Args: rows: float32, float16 or bfloat16, keys.shape + (dim,), finite.
    Cost: a call for each mebibyte of rows. Raises: BadInputError before the first of them; a later
        failure of the store leaves the pieces before it loaded.
    """
    flat, shape = as_keys(keys, spec.name)
    values = np.asarray(to_host(rows))
    if values.shape != (*shape, spec.dim):
        raise BadInputError(
            f"table {spec.name!r}: rows have shape {values.shape}, keys {shape} and dim is"
            f" {spec.dim}; give rows of shape {(*shape, spec.dim)}"
        )
    if not np.isfinite(values).all():
        raise BadInputError(f"table {spec.name!r}: rows hold NaN or infinity; none was loaded")
    patterns, values = without_padding(flat.view(np.int64), values, padding)
    table = ps.table(spec.name)
    piece = max(1, _PIECE_BYTES // (4 * spec.dim))
    for start in range(0, patterns.size, piece):
        table.assign(patterns[start : start + piece], values[start : start + piece])
