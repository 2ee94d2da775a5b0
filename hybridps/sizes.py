"""Byte sizes as people write them: "8GiB", "512 MiB", 1048576.

Binary units are powers of 1024, decimal ones of 1000. Nothing here knows what a size is for.
"""

import re
from typing import Final

from hybridps.errors import BadInputError

_REMEDY: Final = 'give bytes as an int, or text such as "512MiB" or "8GiB"'
_UNITS: Final = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_LIMIT: Final = 1 << 63


def parse_size(size: int | str, name: str = "size") -> int:
    """Bytes of a size; `name` is the setting that errors speak of."""
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise BadInputError(f"{name} is {size!r}; {_REMEDY}")
        number = match[1]
        size = round(float(number) * unit) if "." in number else int(number) * unit
    elif isinstance(size, bool) or not isinstance(size, int):
        raise BadInputError(f"{name} is {size!r}; {_REMEDY}")
    if not 0 <= size < _LIMIT:
        raise BadInputError(f"{name} is {size} bytes; give 0 to 2^63 - 1")
    return size


def format_size(size: int) -> str:
    """The largest binary unit that keeps the number at or above 1: "8GiB", "1.5MiB", "17B"."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= scale:
            return f"{size / scale:.4g}{unit}"
    return f"{size}B"
