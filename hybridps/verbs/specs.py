"""Table specs between the schema and the engine's JSON.

Both sides spell the same names, the schema in camelCase and the engine in snake_case, so the
walk below follows the schema; a new optimizer or initializer needs no line here.
"""

import json
from typing import Any

from hybridps.errors import BadInputError
from hybridps.verbs.names import camel_case, snake_case

_GRADIENT_OPTIONS = ("weight_decay", "clip_value", "clip_norm")
# The schema's word for no admission.
_ALL = "all"


def spec_json(reader: Any, side: str = "server") -> str:
    """The engine's JSON of a `TableSpec` of the schema, for `side`.

    Raises: BadInputError for a number that JSON has no word for, or an unknown member of a union.
    """
    optimizer = _union(reader.optimizer, "optimizer", side)
    gradients = {name: getattr(reader.optimizer, camel_case(name)) for name in _GRADIENT_OPTIONS}
    spec = {
        "name": reader.name,
        "dim": reader.dim,
        "optimizer": optimizer,
        "learning_rate": reader.optimizer.learningRate,
        "gradients": gradients,
        "initializer": _union(reader.initializer, "initializer", side),
        "seed": reader.seed,
        "admission": read_admission(reader.admission, side),
        "dtype": reader.dtype,
        "dram": reader.dram or None,
        "nvme": reader.nvme or None,
    }
    return strict_json(spec | read_expiry(reader.expiry, side))


def fill_spec(builder: Any, stored: str) -> None:
    """Writes the engine's JSON of a spec into a `TableSpec` of the schema."""
    spec = json.loads(stored)
    for name in ("name", "dim", "seed", "dtype"):
        setattr(builder, name, spec[name])
    builder.dram = spec["dram"] or 0
    builder.nvme = spec["nvme"] or 0
    optimizer = builder.init("optimizer")
    optimizer.learningRate = spec["learning_rate"]
    for name, value in spec.get("gradients", {}).items():
        setattr(optimizer, camel_case(name), value)
    _fill_union(optimizer, spec["optimizer"])
    _fill_union(builder.init("initializer"), spec["initializer"])
    if spec.get("admission") is not None:
        fill_admission(builder.init("admission"), spec["admission"])
    if "expiry" in spec:
        fill_expiry(builder.init("expiry"), spec["expiry"])


def read_admission(reader: Any, side: str = "server") -> dict[str, Any] | None:
    """The engine's form of an `Admission` of the schema; None: all keys."""
    admission = _union(reader, "admission", side)
    return None if admission["kind"] == _ALL else admission


def fill_admission(builder: Any, admission: dict[str, Any] | None) -> None:
    """The inverse."""
    _fill_union(builder, admission or {"kind": _ALL})


def read_expiry(reader: Any, side: str = "server") -> dict[str, Any]:
    """`{"expiry": ...}` of an `Expiry` of the schema in the engine's form; `{}` for none."""
    expiry = _union(reader, "expiry", side)
    return {} if expiry["kind"] == "none" else {"expiry": expiry}


def fill_expiry(builder: Any, expiry: dict[str, Any] | None) -> None:
    """Writes an expiry in the engine's form, or none, into an `Expiry` of the schema."""
    _fill_union(builder, {"kind": "none"} if expiry is None else expiry)


def strict_json(value: Any) -> str:
    """JSON that any parser reads.

    Raises: BadInputError for NaN and infinities.
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        raise BadInputError(
            f"a setting is NaN or infinite in {value!r}; give finite numbers"
        ) from None


def _union(reader: Any, what: str, side: str) -> dict[str, Any]:
    try:
        member = str(reader.which())
    except (AttributeError, TypeError, ValueError):
        raise BadInputError(
            f"this {side} does not know the {what} that the spec names; use a newer {side}"
        ) from None
    value = getattr(reader, member)
    kind = {"kind": snake_case(member)}
    if value is None:
        return kind
    if isinstance(value, int | float):
        return {**kind, "value": value}
    return kind | {snake_case(name): getattr(value, name) for name in value.schema.fieldnames}


def _fill_union(builder: Any, union: dict[str, Any]) -> None:
    member = camel_case(union["kind"])
    settings = {camel_case(name): value for name, value in union.items() if name != "kind"}
    if not settings:
        setattr(builder, member, None)
    elif settings.keys() == {"value"}:
        setattr(builder, member, settings["value"])
    else:
        options = builder.init(member)
        for name, value in settings.items():
            setattr(options, name, value)
