"""When rows of a table go by themselves. Frozen, checked on creation.

A live setting: `Table.alter(expiry=...)` changes it, None ends it. Rows go in the background, and
at once by `Table.expire`. A key that expired and is seen again starts as a new row; expired keys
reach whoever follows the changes as removed.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final

from hybridps.durations import format_duration, parse_duration
from hybridps.errors import BadInputError
from hybridps.optimizers import to_float32

_STEPS_MAX: Final = 1 << 62


@dataclass(frozen=True)
class After:
    """A row goes when its key was not seen for so long: neither read by `lookup_or_insert`, nor
    pushed, nor assigned. A `lookup` is no training and keeps nothing.

    Exact to the second, whatever lies in DRAM. After a crash a row may stay longer, by as much as
    passed from its last push to the next opening; what reads alone have seen since the row was
    last written may be lost with the process, as their counts. In the background a jump of the
    system's date, and time in which the server was down, count no more than twice as fast as time.

    Args:   age: "45s", "12h", "30d", "2w", seconds as an int, or a timedelta.
    Raises: BadInputError for anything else, below a second or above a century.
    """

    KIND: ClassVar[str] = "after"
    # Seconds, once checked.
    age: int | str | timedelta

    def __post_init__(self) -> None:
        object.__setattr__(self, "age", parse_duration(self.age, "age"))

    def __repr__(self) -> str:
        return f"After({format_duration(self._seconds)!r})"

    @property
    def _seconds(self) -> int:
        return parse_duration(self.age, "age")

    def options(self) -> dict[str, Any]:
        """Settings by the names that the stored form uses."""
        return {"kind": self.KIND, "seconds": self._seconds}


@dataclass(frozen=True)
class AfterSteps:
    """A row goes when its key was neither pushed nor assigned for so many steps of its table.

    A step is what `apply_gradients(step=)` names, the highest so far; a push without one is the
    next. With several servers give steps: then all of them hear of each. Exact up to 1024 steps,
    else a row may stay longer by a thousandth of them. What was there before the table began to
    count is as old as the first push after that.

    Args:   steps: 1 to 2^62.
    Raises: BadInputError for anything else.
    """

    KIND: ClassVar[str] = "after_steps"
    steps: int

    def __post_init__(self) -> None:
        steps: Any = self.steps
        if isinstance(steps, bool) or not hasattr(steps, "__index__"):
            raise BadInputError(f"steps is {steps!r}; give an int of 1 to 2^62")
        if not 1 <= steps.__index__() <= _STEPS_MAX:
            raise BadInputError(f"steps is {steps.__index__()}; give 1 to 2^62")
        object.__setattr__(self, "steps", steps.__index__())

    def options(self) -> dict[str, Any]:
        """Settings by the names that the stored form uses."""
        return {"kind": self.KIND, "steps": self.steps}


@dataclass(frozen=True)
class BelowNorm:
    """A row goes when the Euclidean norm of its value, optimizer slots left out, is below this.

    Judged when a walk over the table comes by, on the value as it is in that moment. A row that was
    read into being and never pushed or assigned is not judged: it begins as its initializer says.

    Args:   norm: finite, above 0; rounded to float32.
    Raises: BadInputError for anything else.
    """

    KIND: ClassVar[str] = "below_norm"
    norm: float

    def __post_init__(self) -> None:
        norm = to_float32(self.norm, "norm")
        if norm <= 0:
            raise BadInputError(f"norm is {self.norm!r}; give a finite number above 0")
        object.__setattr__(self, "norm", norm)

    def options(self) -> dict[str, Any]:
        """Settings by the names that the stored form uses."""
        return {"kind": self.KIND, "norm": self.norm}


Expiry = After | AfterSteps | BelowNorm
_EXPIRIES: Final = {cls.KIND: cls for cls in (After, AfterSteps, BelowNorm)}


def check_expiry(value: object) -> Expiry | None:
    """An expiry, or None. Raises BadInputError for anything else."""
    if value is None or isinstance(value, Expiry):
        return value
    raise BadInputError(
        f'expiry is {value!r}; give hps.After("30d"), hps.AfterSteps(100_000), hps.BelowNorm(1e-6)'
        " or None"
    )


def expiry_from(options: dict[str, Any] | None) -> Expiry | None:
    """The expiry of stored options, as `options` gives them."""
    if options is None:
        return None
    (value,) = (value for name, value in options.items() if name != "kind")
    return _EXPIRIES[options["kind"]](value)


__all__ = [
    "After",
    "AfterSteps",
    "BelowNorm",
    "Expiry",
    "check_expiry",
    "expiry_from",
]
