"""Lengths of time as people write them: "30d", "36 h", 90, `timedelta(days=7)`.

Nothing here knows what a length of time is for.
"""

import re
from datetime import timedelta
from typing import Final

from hybridps.errors import BadInputError

_REMEDY: Final = 'give seconds as an int, a timedelta, or text such as "45s", "12h" or "30d"'
_UNITS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")
# A century.
_LIMIT: Final = 36_525 * 86_400


def parse_duration(duration: object, name: str) -> int:
    """Whole seconds of a length of time; `name` is the setting that errors speak of."""
    if isinstance(duration, str):
        match = _DURATION.fullmatch(duration)
        unit = _UNITS.get(match[2].lower()) if match else None
        if match is None or unit is None:
            raise BadInputError(f"{name} is {duration!r}; {_REMEDY}")
        seconds = round(float(match[1]) * unit)
    elif isinstance(duration, timedelta):
        seconds = round(duration.total_seconds())
    elif isinstance(duration, bool) or not isinstance(duration, int):
        raise BadInputError(f"{name} is {duration!r}; {_REMEDY}")
    else:
        seconds = duration
    if not 1 <= seconds <= _LIMIT:
        raise BadInputError(f"{name} is {seconds} seconds; give 1 to {_LIMIT}, a century")
    return seconds


def format_duration(seconds: int) -> str:
    """In the largest unit that divides it: "30d", "36h", "90s"."""
    for unit, scale in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds % scale == 0:
            return f"{seconds // scale}{unit}"
    return f"{seconds}s"
