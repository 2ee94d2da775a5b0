"""Ids as layers hold them: 64-bit patterns on the host, of one dtype for all, padding told apart.

int64, because mixed integer dtypes would promote to float64 in NumPy.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from hybridps.errors import BadInputError
from hybridps.keys import as_keys

Patterns = NDArray[np.int64]

_LEAST: Final = -(1 << 63)
_BEYOND: Final = 1 << 64


def as_patterns(ids: NDArray[np.generic], table: str) -> Patterns:
    """int64[ids.shape]: signed ids sign-extend, unsigned ones zero-extend, texts are hashed.

    Bytes are taken for the UTF-8 of a text. May share memory with the argument.
    Raises: BadInputError naming the table for floats, bools and other objects.
    """
    if ids.dtype.kind == "i":
        return ids.astype(np.int64, copy=False)
    if ids.dtype.kind in "OS":
        ids = _decoded(ids, table)
    patterns, shape = as_keys(ids, table)
    return patterns.view(np.int64).reshape(shape)


def _decoded(ids: NDArray[np.generic], table: str) -> NDArray[np.generic]:
    """Bytes as texts, anything else as it is."""
    items: list[object] = ids.reshape(-1).tolist()
    try:
        texts = [item.decode() if isinstance(item, bytes) else item for item in items]
    except UnicodeDecodeError as error:
        raise BadInputError(
            f"table {table!r}: an id of bytes is not UTF-8: {error}; hash such ids to integers"
        ) from None
    result = np.empty(len(texts), object)
    result[:] = texts
    return result.reshape(ids.shape)


def as_padding(key: object, table: str) -> int | None:
    """The pattern of a padding id given as an int of -2^63 to 2^64 - 1; None stays None."""
    if key is None:
        return None
    if isinstance(key, bool) or not isinstance(key, int) or not _LEAST <= key < _BEYOND:
        raise BadInputError(
            f"table {table!r}: padding_idx is {key!r}; give an int of -2^63 to 2^64 - 1, or None"
        )
    return key - _BEYOND if key > np.iinfo(np.int64).max else key


def is_kept(patterns: Patterns, padding: int | None) -> NDArray[np.bool_] | None:
    """Which ids are not padding; None if none is, which is the common case and costs no copy."""
    if padding is None:
        return None
    kept = patterns != padding
    return None if kept.all() else kept
