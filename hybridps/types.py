"""Values that both sides share: table specs and initializers. Frozen, checked on creation.

Numbers are rounded as those of optimizers are, so that a spec equals itself after any trip.
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from hybridps import _core
from hybridps.admission import Admission, admission_from, check_admission
from hybridps.errors import BadInputError
from hybridps.expiry import Expiry, check_expiry, expiry_from
from hybridps.keys import KeysLike, as_keys
from hybridps.optimizers import (
    OPTIMIZERS,
    Optimizer,
    at_least_zero,
    optimizer_from,
    to_float32,
    whole,
)
from hybridps.sizes import parse_size

DIM_MAX: Final = 4096
TABLE_DRAM_MIN: Final = 1 << 20
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True)
class Initializer:
    """Where rows start: a pure function of (table seed, key, initializer)."""

    KIND: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check = at_least_zero if field.name == "std" else to_float32
            object.__setattr__(self, field.name, check(getattr(self, field.name), field.name))

    def options(self) -> dict[str, Any]:
        """Settings by the names that the stored form uses."""
        return {"kind": self.KIND} | dataclasses.asdict(self)


@dataclass(frozen=True)
class Zeros(Initializer):
    """All zero."""

    KIND: ClassVar[str] = "zeros"


@dataclass(frozen=True)
class Constant(Initializer):
    """All `value`."""

    KIND: ClassVar[str] = "constant"
    value: float


@dataclass(frozen=True)
class Uniform(Initializer):
    """Uniform in [low, high)."""

    KIND: ClassVar[str] = "uniform"
    low: float
    high: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise BadInputError(f"low is {self.low} and high is {self.high}; give low <= high")


@dataclass(frozen=True)
class Normal(Initializer):
    """Normal distribution."""

    KIND: ClassVar[str] = "normal"
    mean: float = 0.0
    std: float = 0.01


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal distribution, cut at two standard deviations."""

    KIND: ClassVar[str] = "truncated_normal"
    mean: float = 0.0
    std: float = 0.01


_INITIALIZERS: Final = {
    cls.KIND: cls for cls in (Zeros, Constant, Uniform, Normal, TruncatedNormal)
}


@dataclass(frozen=True)
class TableSpec:
    """What a table is. Shape: dim, dtype, optimizer class and its initial accumulator, initializer,
    seed. Of all else the stored value wins when a table is opened; the learning rate, the admission
    and the byte caps are live: `Table.alter` changes them. Value and slots of a row are at most
    16368 numbers.

    `dram` and `nvme` are byte caps of this table ("8GiB"); None draws on the store's budget.
    `admission` says which keys get a row: `MinCount`, `Probability`, or None for all; live.
    `expiry` says when rows go by themselves: `After("30d")`, `AfterSteps(100_000)` or
    `BelowNorm(1e-6)`; live.
    """

    name: str
    dim: int
    optimizer: Optimizer
    initializer: Initializer = dataclasses.field(default_factory=Normal)
    seed: int = 0
    admission: Admission | None = None
    expiry: Expiry | None = None
    dtype: str = "float32"
    dram: int | str | None = None
    nvme: int | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            allowed = "1 to 128 of A-Z a-z 0-9 . _ - beginning with a letter or digit"
            raise BadInputError(f"name is {self.name!r}; give {allowed}")
        try:
            self._check()
        except BadInputError as error:
            raise BadInputError(f"table {self.name!r}: {error}") from None

    def _check(self) -> None:
        self._set("dim", whole(self.dim, "dim", 1, DIM_MAX))
        self._set("seed", whole(self.seed, "seed", 0, 2**64 - 1))
        if type(self.optimizer) not in OPTIMIZERS.values():
            raise BadInputError(
                f"optimizer is {self.optimizer!r}; give hps.SGD(), hps.Adagrad() or another of"
                f" {', '.join(cls.__name__ for cls in OPTIMIZERS.values())}"
            )
        if type(self.initializer) not in _INITIALIZERS.values():
            raise BadInputError(
                f"initializer is {self.initializer!r};"
                " give hps.Zeros, Constant, Uniform, Normal or TruncatedNormal"
            )
        if self.dtype != "float32":
            raise BadInputError(f'dtype is {self.dtype!r}; give "float32"')
        check_admission(self.admission)
        check_expiry(self.expiry)
        self._set("dram", check_dram(self.dram))
        self._set("nvme", None if self.nvme is None else parse_size(self.nvme, "nvme"))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def initial_rows(self, keys: KeysLike) -> NDArray[np.float32]:
        """float32[keys.shape + (dim,)]: the rows these keys would start with; needs no store."""
        flat, shape = as_keys(keys, self.name)
        return _core.initial_rows(self.to_json(), flat).reshape((*shape, self.dim))

    def to_json(self) -> str:
        """The stored form: the one that the engine keeps in its manifest."""
        gradients = self.optimizer.gradient_options()
        return json.dumps(
            {
                "name": self.name,
                "dim": self.dim,
                "optimizer": self.optimizer.options(),
                "learning_rate": self.optimizer.learning_rate,
                **({"gradients": gradients} if any(gradients.values()) else {}),
                "initializer": self.initializer.options(),
                "seed": self.seed,
                **({"admission": self.admission.options()} if self.admission else {}),
                "dtype": self.dtype,
                "dram": self.dram,
                "nvme": self.nvme,
                **({} if self.expiry is None else {"expiry": self.expiry.options()}),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The spec that `to_json` wrote. Raises BadInputError for anything else."""
        try:
            fields = json.loads(text)
            rate = fields.pop("learning_rate")
            gradients = fields.pop("gradients", None)
            optimizer = optimizer_from(fields.pop("optimizer"), rate, gradients)
            initializer = initializer_from(fields.pop("initializer"))
            return cls(
                optimizer=optimizer,
                initializer=initializer,
                admission=admission_from(fields.pop("admission", None)),
                expiry=expiry_from(fields.pop("expiry", None)),
                **fields,
            )
        except (KeyError, TypeError, ValueError, AttributeError, json.JSONDecodeError) as error:
            raise BadInputError(f"table spec is not readable: {error!r}; use to_json") from None


def initializer_from(options: dict[str, Any]) -> Initializer:
    """The initializer of stored options, as `Initializer.options` gives them."""
    options = dict(options)
    return _INITIALIZERS[options.pop("kind")](**options)


def check_dram(dram: int | str | None) -> int | None:
    """Bytes of a table's DRAM cap; None for no cap of its own."""
    if dram is None:
        return None
    size = parse_size(dram, "dram")
    if size < TABLE_DRAM_MIN:
        raise BadInputError(f"dram is {size} bytes; give at least 1MiB, or None for no cap")
    return size
