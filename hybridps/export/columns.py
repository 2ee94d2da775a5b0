"""What a file of rows holds, whatever its format: columns of so many rows, and where they are from.

`key` uint64[n], `value` float32[n, dim]; if they come along `slots` float32[n, k], and `frequency`
and `last_seen`, uint32[n]. Metadata are texts by name, as all three formats can hold them.
"""

import abc
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hybridps.errors import BadInputError
from hybridps.types import TableSpec

# Bytes of rows that are in memory at a time, and rows however narrow.
PIECE_BYTES: Final = 1 << 20
PIECE_ROWS: Final = 1 << 16
# Where the spec of the table stands among the metadata.
SPEC: Final = "hybridps.spec"
STATISTICS: Final = ("frequency", "last_seen")

# Some rows: their arrays by the names of their columns.
Piece = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Column:
    """One array of a file, of as many rows as all others."""

    name: str
    dtype: np.dtype[Any]
    # Numbers a row; None: one, and no second axis.
    width: int | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes that a row takes in it."""
        return self.dtype.itemsize * (1 if self.width is None else self.width)

    def shape(self, rows: int) -> tuple[int, ...]:
        """Of so many rows."""
        return (rows,) if self.width is None else (rows, self.width)

    def __str__(self) -> str:
        return f"{self.name} of {self.dtype}[n{'' if self.width is None else f', {self.width}'}]"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a file, and its metadata."""

    columns: tuple[Column, ...]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, spec: TableSpec, slots: int, *, with_statistics: bool) -> Self:
        """Those of a table with so many numbers of slots a row; 0: they stay out."""
        columns = [_KEY, _value(spec.dim)]
        if slots:
            columns.append(_slots(slots))
        if with_statistics:
            columns += (Column(name, np.dtype("<u4")) for name in STATISTICS)
        return cls(tuple(columns), {SPEC: spec.to_json()})

    def has(self, name: str) -> bool:
        """Whether a column of that name is there."""
        return any(column.name == name for column in self.columns)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row in all columns."""
        return sum(column.row_bytes for column in self.columns)

    @property
    def piece_rows(self) -> int:
        """Rows of a piece."""
        return max(1, min(PIECE_ROWS, PIECE_BYTES // max(self.row_bytes, 1)))

    def spec(self, path: Path) -> TableSpec | None:
        """Of the table that was exported; None: another program wrote the file."""
        text = self.metadata.get(SPEC)
        if text is None:
            return None
        try:
            return TableSpec.from_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise BadInputError(f"{path}: the spec in it cannot be read: {error}") from None


_KEY: Final = Column("key", np.dtype("<u8"))
# As other programs have them: the same 64 bits.
_SIGNED_KEY: Final = Column("key", np.dtype("<i8"))


def _value(dim: int) -> Column:
    return Column("value", np.dtype("<f4"), dim)


def _slots(numbers: int) -> Column:
    return Column("slots", np.dtype("<f4"), numbers)


class Writer(abc.ABC):
    """A file on its way. It has no name before `finish`."""

    @abc.abstractmethod
    def add(self, piece: Piece) -> None:
        """Some more rows."""

    @abc.abstractmethod
    def finish(self) -> None:
        """All rows are there: the file gets its name, once it is on the device."""

    @abc.abstractmethod
    def abandon(self) -> None:
        """Nothing stays of it. Harmless after `finish`."""


class Reader(abc.ABC):
    """A file that is read."""

    columns: Columns
    rows: int

    @abc.abstractmethod
    def pieces(self) -> Iterator[Piece]:
        """All rows in order, some at a time; every number was checked to be of its column."""

    @abc.abstractmethod
    def close(self) -> None:
        """It is read no more."""


def check_fit(
    path: Path, columns: Columns, spec: TableSpec, slots: int, *, take_slots: bool | None
) -> Columns:
    """The columns of a file that go into a table with so many numbers of slots a row.

    `take_slots`: None takes them if they are there.
    Raises: BadInputError naming what does not fit.
    """
    found = {column.name: column for column in columns.columns}
    wanted = [_KEY, _value(spec.dim)]
    if take_slots is None:
        take_slots = "slots" in found
    if take_slots and "slots" in found:
        _check_optimizer(path, columns.spec(path), spec)
    if take_slots and slots:
        wanted.append(_slots(slots))
    if all(name in found for name in STATISTICS):
        wanted += (Column(name, np.dtype("<u4")) for name in STATISTICS)
    for column in wanted:
        if column.name not in found:
            raise BadInputError(
                f"{path}: column {column.name} is missing; table {spec.name!r} takes {column}"
            )
        if column == _KEY and found["key"] == _SIGNED_KEY:
            continue
        if found[column.name] != column:
            raise BadInputError(
                f"{path}: {found[column.name]} does not fit table {spec.name!r}, which takes"
                f" {column}"
            )
    return Columns(tuple(found[column.name] for column in wanted), columns.metadata)


def _check_optimizer(path: Path, theirs: TableSpec | None, spec: TableSpec) -> None:
    """Slots mean something to their own optimizer alone."""
    own = _shape_of(spec)
    other = None if theirs is None else _shape_of(theirs)
    if own != other:
        came = "an optimizer that it does not name" if other is None else other
        raise BadInputError(
            f"{path}: its slots are of {came}, those of table {spec.name!r} of {own}; take the"
            " values alone with slots=False"
        )


def _shape_of(spec: TableSpec) -> str:
    return type(spec.optimizer).__name__


def check_values(path: Path, piece: Piece, first_row: int) -> None:
    """What no table stores is refused, naming its row."""
    for name in ("value", "slots"):
        numbers = piece.get(name)
        if numbers is not None and not np.isfinite(numbers).all():
            row, column = np.argwhere(~np.isfinite(numbers))[0]
            raise BadInputError(
                f"{path}: {name} of key {piece['key'][row]} (row {first_row + row}) hold"
                f" {numbers[row, column]} at column {column}; only finite rows are stored"
            )


def sync_and_rename(temporary: Path, path: Path) -> None:
    """A file that bears its name is whole, also after a power cut."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def temporary_of(path: Path) -> Path:
    """Beside the file, so that it can be renamed; of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def texts_of(path: Path, metadata: object) -> dict[str, str]:
    """Metadata as another program may have written them."""
    if not isinstance(metadata, dict) or not all(
        isinstance(name, str) and isinstance(text, str) for name, text in metadata.items()
    ):
        raise BadInputError(f"{path}: its metadata are no texts by name")
    return metadata


def parse_json(path: Path, text: bytes) -> Any:
    """JSON of a file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInputError(f"{path}: its header is no JSON: {error}") from None
