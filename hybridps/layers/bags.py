"""Bags: runs of ids that a layer reduces to one vector each. Arithmetic of their offsets alone.

Offsets are int64 and ascend from 0: where each bag begins among the flat ids, in places followed by
where the last one ends, which is the number of ids.
"""

import numpy as np
from numpy.typing import NDArray

from hybridps.errors import BadInputError

Offsets = NDArray[np.int64]


def of_lines(bags: int, size: int, has_end: bool) -> Offsets:
    """Offsets of `bags` bags of `size` ids each."""
    return np.multiply(np.arange(bags + has_end, dtype=np.int64), size, dtype=np.int64)


def checked(offsets: Offsets, ids: int, has_end: bool, table: str) -> Offsets:
    """The offsets. Raises BadInputError, naming the table, unless they fit `ids` flat ids."""
    least = 1 if has_end else 0
    if offsets.ndim != 1 or offsets.size < least:
        raise BadInputError(
            f"table {table!r}: offsets are of shape {offsets.shape}; give 1-D, {least} or more"
        )
    if offsets.size and (
        offsets[0] != 0 or offsets[-1] > ids or (offsets[1:] < offsets[:-1]).any()
    ):
        raise BadInputError(
            f"table {table!r}: offsets do not ascend from 0 to at most {ids}: {offsets}"
        )
    return offsets


def with_end(offsets: Offsets, ids: int, has_end: bool) -> Offsets:
    """The same bags with their end at last, as `of_lines(..., has_end=True)` gives it.

    Ids past the last offset that is an end belong to no bag.
    """
    return offsets if has_end else np.append(offsets, np.int64(ids))


def without(kept: NDArray[np.bool_], offsets: Offsets) -> Offsets:
    """Offsets of the same bags among the ids that are kept."""
    before = np.zeros(kept.size + 1, np.int64)
    np.cumsum(kept, out=before[1:])
    return before[offsets]
