"""Checkpoints in a directory: what they are, which there are, whether they are whole, which go.

All of it works on the files, without a server. How they are made and restored: the verbs
`checkpoint` and `restore`; their formats: docs/checkpoint.md.
"""

import json
import warnings
from dataclasses import dataclass
from datetime import timedelta
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from hybridps import _core
from hybridps.durations import parse_duration
from hybridps.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that is whole, as its manifest describes it."""

    # Its directory's name: the date, so that ids sort by age.
    id: str
    # "full", or "delta": what changed since its parent.
    kind: str
    parent: str | None
    # As it was given; None: it was not.
    step: int | None
    extra: Any
    # Unix seconds.
    created: float
    # Rows of each table, on all servers.
    tables: dict[str, int]
    # Of its own files, without those of its parents.
    bytes: int

    @classmethod
    def of(cls, manifest: dict[str, Any]) -> Self:
        """From the JSON of a manifest."""
        names = ("id", "kind", "parent", "step", "extra", "created", "tables", "bytes")
        return cls(**{name: manifest[name] for name in names})


def checkpoints(path: str | PathLike[str]) -> list[Checkpoint]:
    """All whole checkpoints in a directory, oldest first; [] where it is absent. Warns of each that
    cannot be read; foreign files, and what is being written, are passed over.

    Raises: ConfigError if the directory cannot be read.
    """
    whole, damaged = _core.checkpoints(directory_of(path))
    for text in damaged:
        warnings.warn(text, stacklevel=2)
    return [Checkpoint.of(manifest) for manifest in json.loads(whole)]


def verify_checkpoint(
    path: str | PathLike[str],
    id: str | None = None,  # noqa: A002 - as the contract has it
) -> Checkpoint:
    """Reads a checkpoint and all that it is built on; without `id` all in the directory. Returns
    it, or the newest. Costs a read of all files.

    Raises: CorruptionError naming a file that is missing, damaged or foreign; BadInputError if
    there is no checkpoint.
    """
    return Checkpoint.of(json.loads(_core.verify_checkpoint(directory_of(path), id)))


def prune_checkpoints(
    path: str | PathLike[str], keep: int = 3, every: timedelta | int | str | None = None
) -> list[str]:
    """Deletes old checkpoints; returns their ids. What stays is whole at every moment.

    Args:    keep: the newest so many stay, and all that they are built on.
             every: of older ones the newest of each such period stays too ("1d", "12h", 3600).
    Raises:  BadInputError; CorruptionError if a manifest cannot be read; UnavailableError.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise BadInputError(f"keep is {keep!r}; give how many checkpoints are to stay, at least 1")
    every_s = None if every is None else float(parse_duration(every, "every"))
    return _core.prune_checkpoints(directory_of(path), keep, every_s)


def directory_of(path: str | PathLike[str]) -> str:
    """The directory that a path or a file: URL names, absolute.

    Raises: BadInputError for a URL of another kind.
    """
    text = fspath(path)
    if not text:
        raise BadInputError("path is empty; give a directory for checkpoints")
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise BadInputError(
                f"path is {text!r}; checkpoints are kept in directories: give a path, or file://..."
            )
        text = unquote(parts.path)
    return str(Path(text).absolute())
