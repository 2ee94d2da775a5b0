"""Which keys of a table get a row: `MinCount` and `Probability`. Frozen, checked on creation.

A key that is not admitted has no row: `lookup_or_insert` answers with its initial row and counts,
`lookup` with zeros; its gradients are dropped and counted (`gradients_unadmitted`). It costs its
count alone, four bytes. `assign` gives it a row at once. Counts survive a restart; those since the
last flush or checkpoint may be lost with the process.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from hybridps.errors import BadInputError
from hybridps.optimizers import whole

CAPACITY: Final = 10_000_000
_COUNT_MAX: Final = 1 << 16
_P_MIN: Final = 1 / 4096
_BUCKETS: Final = 4096
# A key that chance has passed over so many times its mean wait is admitted.
_WAITS_MAX: Final = 16
# Of what is kept of a key, in which its count and a tag share four bytes.
_ENTRY_BITS: Final = 32
_ODDS: Final = 100


@dataclass(frozen=True)
class Admission:
    """What both rules share.

    `capacity` is how many keys that are not admitted are remembered; beyond it the oldest counts
    fade, so keys are admitted later. Memory is taken as keys come, about four bytes each. At most
    one key in a hundred is taken for another, and so admitted too early; far fewer with small
    counts and a small `capacity`.
    """

    KIND: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """Settings by the names that the stored form uses."""
        return {"kind": self.KIND} | dataclasses.asdict(self)

    def _set_capacity(self, capacity: object, count_max: int) -> None:
        width = max(1, (count_max - 1).bit_length())
        most = (1 << _ENTRY_BITS - width) // _ODDS * _BUCKETS
        try:
            object.__setattr__(self, "capacity", whole(capacity, "capacity", 1, most))
        except BadInputError as error:
            reason = f", for counts of up to {count_max}, which share 4 bytes a key"
            raise BadInputError(f"{error}{reason}") from None


@dataclass(frozen=True)
class MinCount(Admission):
    """A key gets its row in the training read that brings its count to `n`: 1 to 65536. Counted is
    what `lookup_or_insert` counts, `counts=` included; pushes and lookups are not.
    """

    KIND: ClassVar[str] = "min_count"
    n: int
    capacity: int = CAPACITY

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "n", 1, _COUNT_MAX))
        self._set_capacity(self.capacity, self.n)


@dataclass(frozen=True)
class Probability(Admission):
    """Each counted occurrence of a key admits it with probability `p`: 1/4096 to 1. Drawn from the
    table's seed, the key and which occurrence it is, so equal runs admit equal keys, whatever the
    shards and the DRAM. After 16/p occurrences a key is admitted in any case.
    """

    KIND: ClassVar[str] = "probability"
    p: float
    capacity: int = CAPACITY

    def __post_init__(self) -> None:
        p = self.p
        if isinstance(p, (bool, str)) or not hasattr(p, "__float__") or not _P_MIN <= float(p) <= 1:
            raise BadInputError(f"p is {p!r}; give a number of 1/4096 to 1")
        object.__setattr__(self, "p", float(p))
        self._set_capacity(self.capacity, 1 if self.p == 1 else math.ceil(_WAITS_MAX / self.p))


_ADMISSIONS: Final = {cls.KIND: cls for cls in (MinCount, Probability)}


def admission_from(options: dict[str, Any] | None) -> Admission | None:
    """The admission of stored options, as `Admission.options` gives them."""
    if options is None:
        return None
    options = dict(options)
    return _ADMISSIONS[options.pop("kind")](**options)


def parse_admission(text: str) -> Admission:
    """An admission as commands take it: "min_count:3", "probability:0.1", or either with ":" and a
    capacity. Raises BadInputError.
    """
    kind, *words = text.split(":")
    numbers = {"min_count": int, "probability": float}
    try:
        first, *capacity = words
        rule = _ADMISSIONS[kind](numbers[kind](first), *map(int, capacity))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
        raise BadInputError(
            f"admission is {text!r}; give min_count:N or probability:P, with :CAPACITY if need be"
        ) from None
    return rule


def check_admission(admission: object) -> Admission | None:
    """Refuses what is none."""
    if admission is None or type(admission) in _ADMISSIONS.values():
        return admission  # type: ignore[return-value]  # one of ours
    raise BadInputError(
        f"admission is {admission!r}; give hps.MinCount(n), hps.Probability(p), or None for all"
        " keys"
    )
