"""Id tensors -> 64-bit key patterns on the host. Pure: no store, no layer.

One dtype for all patterns, int64, because mixed integer dtypes would promote to float64 in NumPy.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from hybridps.errors import BadInputError

Keys = NDArray[np.int64]


def as_keys(ids: object, table: str) -> Keys:
    """int64[ids.shape]: signed ids sign-extend, unsigned ones zero-extend, as everywhere.

    Raises: BadInputError naming the table for anything but a tensor of integers.
    """
    if not isinstance(ids, torch.Tensor):
        raise BadInputError(
            f"table {table!r}: ids are a {type(ids).__name__}; give a tensor of integers"
        )
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise BadInputError(
            f"table {table!r}: ids are {ids.dtype}; cast them to integers, for example with .long()"
        )
    return ids.detach().cpu().numpy().astype(np.int64, copy=False)


def as_key(key: int | None, table: str) -> int | None:
    """The same pattern for one key given as an int of -2^63 to 2^64 - 1."""
    if key is None:
        return None
    if isinstance(key, bool) or not isinstance(key, int) or not -(1 << 63) <= key < 1 << 64:
        raise BadInputError(
            f"table {table!r}: padding_idx is {key!r}; give an int of -2^63 to 2^64 - 1, or None"
        )
    return key - (1 << 64) if key >= 1 << 63 else key
