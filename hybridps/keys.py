"""Keys of any kind -> one-dimensional uint64 patterns and the shape they came in.

Signed integers sign-extend, unsigned zero-extend; a str is XXH64, seed 0, of its UTF-8. Floats and
bools never pass. Tensors are taken by their own methods: no framework is imported here.
"""

from collections.abc import Sequence
from typing import Final, Protocol, Self, cast, runtime_checkable

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from hybridps.errors import BadInputError

_ACCEPTED: Final = "any integer array, tensor or sequence, or str"
_MASK: Final = (1 << 64) - 1
_SIGNED_MIN: Final = -(1 << 63)

Shape = tuple[int, ...]
Keys = NDArray[np.uint64]
KeysLike = ArrayLike


@runtime_checkable
class Tensor(Protocol):
    """What torch tensors have; used to bring them to the host without importing torch."""

    def detach(self) -> Self:
        """The same numbers without a gradient."""

    def cpu(self) -> Self:
        """The same numbers on the host."""

    def numpy(self) -> NDArray[np.generic]:
        """A view of host memory."""


def to_host(value: object) -> object:
    """A torch tensor as a NumPy array; anything else as it is."""
    if type(value) is np.ndarray:
        # First, since it is what most are: asking for a protocol costs as much as a small call.
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return value


def as_keys(keys: KeysLike, table: str = "") -> tuple[Keys, Shape]:
    """The patterns of `keys`, C-contiguous and flat, and their shape; () for one key.

    The result may share memory with the argument: it is read, never written.
    Raises: BadInputError naming the table, what was given and what to do.
    """
    value = to_host(keys)
    if isinstance(value, (str, int, list, tuple, range)):
        return _from_objects(np.array(_plain(value), dtype=object), table)
    if not (isinstance(value, (np.ndarray, np.generic)) or hasattr(value, "__array__")):
        raise _refused(type(value).__name__, table)
    array = np.asarray(cast("ArrayLike", value))
    kind = array.dtype.kind
    if kind in "iu":
        wide = array.astype(np.int64 if kind == "i" else np.uint64, copy=False)
        return np.ascontiguousarray(wide).reshape(-1).view(np.uint64), array.shape
    if kind in "OUT":
        return _from_objects(array, table)
    raise _refused(str(array.dtype), table)


def key_of(text: str) -> int:
    """The key that a str stands for, in every client: XXH64, seed 0, of its UTF-8; 0 to 2^64 - 1.

    Raises: BadInputError for what is no str, or has lone surrogates.
    """
    if not isinstance(text, str):
        raise BadInputError(f"key_of takes a str, got a {type(text).__name__}; give one text")
    return int(keys_of(text))


def keys_of(texts: str | Sequence[str] | NDArray[np.str_]) -> Keys:
    """The keys that texts stand for: uint64 of their shape.

    Args:   texts: a sequence of str, nested or not, or an array of them.
    Raises: BadInputError for what is no str, or has lone surrogates.
    """
    array = np.asarray(texts, dtype=object)
    strays = [item for item in array.reshape(-1).tolist() if not isinstance(item, str)]
    if strays:
        raise BadInputError(
            f"keys_of takes texts, got a {type(strays[0]).__name__}; give str, integers are keys"
            " already"
        )
    keys, shape = _from_objects(array, "")
    return keys.reshape(shape)


def hash_texts(texts: Sequence[str]) -> Keys:
    """uint64[n]: XXH64, seed 0, of the UTF-8 of each text."""
    digest = xxhash.xxh64_intdigest
    return np.fromiter(map(digest, map(str.encode, texts)), np.uint64, len(texts))


def _plain(value: object) -> object:
    """Sequences that hold tensors or arrays, as nested lists of plain scalars."""
    if isinstance(value, (list, tuple)):
        if any(type(item) not in (int, str, bool, float) for item in value):
            return [_plain(item) for item in value]
        return value
    value = to_host(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value


def _from_objects(array: NDArray[np.generic], table: str) -> tuple[Keys, Shape]:
    items = array.reshape(-1).tolist()
    types = set(map(type, items))
    if types <= {int}:
        return _from_ints(items, table), array.shape
    if all(issubclass(t, str) for t in types):
        try:
            return hash_texts(items), array.shape
        except UnicodeEncodeError as error:
            raise BadInputError(
                f"{_of(table)}a str key is not encodable as UTF-8: {error}; remove lone surrogates"
            ) from None
    if all(issubclass(t, (int, np.integer)) and t is not bool for t in types):
        return _from_ints([int(item) for item in items], table), array.shape
    odd = [t.__name__ for t in types if t is bool or not issubclass(t, (int, str, np.integer))]
    raise _refused(odd[0] if odd else "a mix of str and integers", table)


def _from_ints(items: list[int], table: str) -> Keys:
    try:
        return np.array(items, dtype=np.int64).view(np.uint64)
    except OverflowError:
        for item in items:
            if not _SIGNED_MIN <= item <= _MASK:
                raise BadInputError(
                    f"{_of(table)}key {item} does not fit 64 bits; give -2^63 to 2^64 - 1"
                ) from None
        return np.array([item & _MASK for item in items], dtype=np.uint64)


def _of(table: str) -> str:
    return f"table {table!r}: " if table else ""


def _refused(what: str, table: str) -> BadInputError:
    remedy = f"give {_ACCEPTED}"
    if what.startswith(("float", "bool", "complex", "bfloat")):
        remedy = "cast them to integers, for example with .astype(numpy.int64)"
    elif what.startswith(("|S", "bytes")):
        remedy = "decode them to str"
    elif what == "list":
        remedy = "the sequence is ragged: concatenate it and keep offsets"
    elif what.startswith("a mix"):
        remedy = "give one kind in each call"
    return BadInputError(f"{_of(table)}keys are {what}; {remedy}")
