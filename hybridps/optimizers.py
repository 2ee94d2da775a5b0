"""Rules that `apply_gradients` follows. Frozen, checked on creation.

Every rule is lazy: a key takes a step only in a push that names it, and where a bias is corrected,
it is by that key's own step count. Arithmetic is float32 in a fixed order, so rows are bit-equal on
every machine, for any DRAM and any number of shards. Rules are torch's where torch has the
optimizer; where not, the class names its source.

Numbers that the engine keeps as float32 are rounded to float32 here, and shown by their shortest
decimal form, so that a spec equals itself after any trip through JSON, the wire or the disk.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import numpy as np

from hybridps.errors import BadInputError

_FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
_GRADIENT_OPTIONS: Final = ("weight_decay", "clip_value", "clip_norm")


def to_float32(value: object, name: str) -> float:
    """The float32 nearest to `value`, by its shortest decimal form. Raises BadInputError."""
    number = _number(value, name)
    if not abs(number) <= _FLOAT32_MAX:
        raise BadInputError(f"{name} is {value!r}; give a finite number within float32")
    return float(str(np.float32(number)))


def at_least_zero(value: object, name: str) -> float:
    """As `to_float32`, for a setting that is not negative."""
    number = to_float32(value, name)
    if number < 0:
        raise BadInputError(f"{name} is {value!r}; give a finite number of at least 0")
    return number


def whole(value: object, name: str, low: int, high: int) -> int:
    """`value` as an int of `low` to `high`. Raises BadInputError."""
    if isinstance(value, (bool, str)) or not hasattr(value, "__index__"):
        raise BadInputError(f"{name} is {value!r}; give an int of {low} to {high}")
    whole: int = value.__index__()
    if not low <= whole <= high:
        raise BadInputError(f"{name} is {whole}; give {low} to {high}")
    return whole


def _number(value: object, name: str) -> float:
    if isinstance(value, (bool, str)) or not hasattr(value, "__float__"):
        raise BadInputError(f"{name} is {value!r}; give a number")
    number = float(value)
    if not math.isfinite(number):
        raise BadInputError(f"{name} is {value!r}; give a finite number")
    return number


def _below_one(value: object, name: str) -> float:
    number = _number(value, name)
    if not 0 <= number < 1:
        raise BadInputError(f"{name} is {number}; give at least 0 and below 1")
    return number


def _betas(value: Any) -> tuple[float, float]:
    try:
        first, second = value
    except (TypeError, ValueError):
        raise BadInputError(f"betas is {value!r}; give two numbers") from None
    return _below_one(first, "betas[0]"), _below_one(second, "betas[1]")


def _flag(value: object, name: str) -> bool:
    if not isinstance(value, bool):
        raise BadInputError(f"{name} is {value!r}; give True or False")
    return value


def _clip(value: object, name: str) -> float | None:
    if value is None:
        return None
    bound = to_float32(value, name)
    if bound <= 0:
        raise BadInputError(f"{name} is {value!r}; give a number above 0, or None")
    return bound


_CHECKS: Final = {
    "betas": lambda value, _: _betas(value),
    "momentum": lambda value, name: to_float32(_below_one(value, name), name),
    "alpha": _below_one,
    "nesterov": _flag,
    "clip_value": _clip,
    "clip_norm": _clip,
}


@dataclass(frozen=True)
class Optimizer:
    """What all rules share. The learning rate is live: `Table.alter` changes it. Of the other
    settings a table keeps those that it was created with.

    `clip_value` cuts each number of a gradient to that distance from 0, `clip_norm` shortens the
    gradient of a key to that Euclidean norm, in this order; None: not at all. Then `weight_decay`
    times the value is added to it, as torch does (`AdamW` and `Lamb` say how they decay).
    """

    KIND: ClassVar[str]
    learning_rate: float
    weight_decay: float = field(default=0.0, kw_only=True)
    clip_value: float | None = field(default=None, kw_only=True)
    clip_norm: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for setting in dataclasses.fields(self):
            check = _CHECKS.get(setting.name, at_least_zero)
            value = check(getattr(self, setting.name), setting.name)
            object.__setattr__(self, setting.name, value)

    def options(self) -> dict[str, Any]:
        """Settings of the rule itself by the names that the stored form uses."""
        settings = dataclasses.asdict(self)
        for name in ("learning_rate", *_GRADIENT_OPTIONS):
            del settings[name]
        if "betas" in settings:
            settings["beta1"], settings["beta2"] = settings.pop("betas")
        return {"kind": self.KIND} | settings

    def gradient_options(self) -> dict[str, float]:
        """What is done to gradients before the rule sees them, in the stored form; 0: nothing."""
        return {name: getattr(self, name) or 0.0 for name in _GRADIENT_OPTIONS}


@dataclass(frozen=True)
class SGD(Optimizer):
    """torch.optim.SGD without momentum. No slots."""

    KIND: ClassVar[str] = "sgd"
    learning_rate: float = 0.001


@dataclass(frozen=True)
class Momentum(Optimizer):
    """torch.optim.SGD with momentum, without dampening. One slot a column."""

    KIND: ClassVar[str] = "momentum"
    learning_rate: float = 0.001
    momentum: float = 0.9
    nesterov: bool = False


@dataclass(frozen=True)
class Adagrad(Optimizer):
    """torch.optim.Adagrad: one accumulator a column, eps outside the root."""

    KIND: ClassVar[str] = "adagrad"
    learning_rate: float = 0.01
    initial_accumulator: float = 0.0
    eps: float = 1e-10


@dataclass(frozen=True)
class RowWiseAdagrad(Optimizer):
    """One accumulator a row, the mean of squares (fbgemm's exact row-wise Adagrad)."""

    KIND: ClassVar[str] = "row_wise_adagrad"
    learning_rate: float = 0.01
    initial_accumulator: float = 0.0
    eps: float = 1e-10


@dataclass(frozen=True)
class RMSprop(Optimizer):
    """torch.optim.RMSprop, without momentum and not centred. One slot a column."""

    KIND: ClassVar[str] = "rms_prop"
    learning_rate: float = 0.01
    alpha: float = 0.99
    eps: float = 1e-8


@dataclass(frozen=True)
class Adam(Optimizer):
    """torch.optim.Adam; the bias correction uses each key's own step count. Two slots a column and
    one a row.
    """

    KIND: ClassVar[str] = "adam"
    learning_rate: float = 0.001
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


@dataclass(frozen=True)
class AdamW(Adam):
    """torch.optim.AdamW: a step first takes `learning_rate * weight_decay` of the value away."""

    KIND: ClassVar[str] = "adam_w"
    weight_decay: float = field(default=0.01, kw_only=True)


@dataclass(frozen=True)
class AMSGrad(Adam):
    """torch.optim.Adam with amsgrad. Three slots a column and one a row."""

    KIND: ClassVar[str] = "ams_grad"


@dataclass(frozen=True)
class RAdam(Adam):
    """torch.optim.RAdam."""

    KIND: ClassVar[str] = "r_adam"


@dataclass(frozen=True)
class AdaBelief(Adam):
    """Algorithm 2 of arXiv 2010.07468: eps inside the second moment and at the root."""

    KIND: ClassVar[str] = "ada_belief"
    eps: float = 1e-16


@dataclass(frozen=True)
class Lamb(Adam):
    """LAMB (arXiv 1904.00962) with one trust ratio a row; `weight_decay` times the value is a part
    of the direction that is stretched to the row's length.
    """

    KIND: ClassVar[str] = "lamb"
    eps: float = 1e-6


@dataclass(frozen=True)
class GroupAdam(Adam):
    """Adam with sparse group lasso (arXiv 2107.14432, TFPlus' GroupAdam V4), a row being a group:
    `l1`, `l2` and `l21` count times the learning rate. A row whose linear term is at most
    `l21 * sqrt(dim)` long is zero, and comes back from zero when it is longer again. The value
    follows from the slots alone, so what is assigned counts until the next step. Three slots a
    column and one a row.
    """

    KIND: ClassVar[str] = "group_adam"
    l1: float = 0.0
    l2: float = 0.0
    l21: float = 0.0


@dataclass(frozen=True)
class FTRL(Optimizer):
    """TensorFlow's Ftrl with power -1/2: its `l2` counts twice. The value follows from the slots
    alone, so what is assigned counts until the next step, and rows begin near zero whatever the
    initializer. Two slots a column.
    """

    KIND: ClassVar[str] = "ftrl"
    learning_rate: float = 0.001
    initial_accumulator: float = 0.1
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate == 0:
            raise BadInputError("learning_rate is 0; give a number above 0: FTRL divides by it")


@dataclass(frozen=True)
class SparseGroupFtrl(FTRL):
    """FTRL with sparse group lasso, a row being a group: see `GroupAdam` for `l21`."""

    KIND: ClassVar[str] = "sparse_group_ftrl"
    l21: float = 0.0


OPTIMIZERS: Final[dict[str, type[Optimizer]]] = {
    cls.KIND: cls
    for cls in (
        SGD,
        Momentum,
        Adagrad,
        RowWiseAdagrad,
        RMSprop,
        Adam,
        AdamW,
        AMSGrad,
        RAdam,
        AdaBelief,
        Lamb,
        GroupAdam,
        FTRL,
        SparseGroupFtrl,
    )
}


def optimizer_from(
    options: dict[str, Any], learning_rate: float, gradients: dict[str, float] | None = None
) -> Optimizer:
    """The optimizer of stored options, as `options` and `gradient_options` give them."""
    settings: dict[str, Any] = dict(options)
    cls = OPTIMIZERS[settings.pop("kind")]
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    stored = gradients or {}
    settings["weight_decay"] = stored.get("weight_decay", 0.0)
    for name in ("clip_value", "clip_norm"):
        settings[name] = stored.get(name) or None
    return cls(learning_rate=learning_rate, **settings)
