"""What a replica knows over restarts, in one small file of its data directory: how far it has come,
and the specs of the tables that it follows. Written whole, after the rows that it speaks of.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hybridps.errors import ConfigError

_NAME: Final = "replica.json"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class State:
    """See the module."""

    # A `Position` as text; None: nothing is known yet.
    position: str | None = None
    # Unix seconds of the moment whose rows are all here; None: there was none yet.
    as_of: float | None = None
    # Of each table, as the one that is followed stores it.
    specs: Mapping[str, str] = field(default_factory=dict)


def load(data: Path) -> State | None:
    """None where the directory is no replica's. Raises: ConfigError for a file that is not ours."""
    path = data / _NAME
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        known = State(told["position"], told["as_of"], dict(told["specs"]))
        version = told["version"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error}); remove the directory, and the replica begins anew"
        ) from None
    if version != _VERSION:
        raise ConfigError(f"{path} is of version {version}; use the hybridps that wrote it")
    return known


def save(data: Path, state: State) -> None:
    """Durable on return; before it, or after a crash inside it, the old one is there."""
    told: dict[str, Any] = {
        "version": _VERSION,
        "position": state.position,
        "as_of": state.as_of,
        "specs": dict(state.specs),
    }
    fresh = data / f"{_NAME}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(told, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(data / _NAME)
    directory = os.open(data, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
