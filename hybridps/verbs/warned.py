"""Warnings that name the line of the user's program which made the call."""

import sys
import warnings
from types import FrameType


def warn(text: str) -> None:
    """Warns the first caller outside of this package, however deep inside it this is."""
    level = 1
    # The way that the standard library has.
    frame: FrameType | None = sys._getframe()  # noqa: SLF001
    while frame is not None and frame.f_globals.get("__name__", "").startswith("hybridps."):
        level += 1
        frame = frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
