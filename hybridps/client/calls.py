"""What one server (or the store in this process) can be asked, as data.

A call names tables by that server's id and carries unique keys. Transports execute calls; nothing
here knows how. `Push` calls change rows: transports number them, in the order they are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridps.types import TableSpec

Keys = NDArray[np.uint64]
Rows = NDArray[np.float32]
Counts = NDArray[np.uint32]
Found = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Call:
    """Base of all calls; safe to send again when no answer came."""


@dataclass(frozen=True, slots=True)
class Push(Call):
    """A call that changes rows: numbered, and applied once however often it is sent."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A table as one server knows it."""

    id: int
    spec: TableSpec
    warnings: Sequence[str]


@dataclass(frozen=True, slots=True)
class Lookup(Call):
    """-> list[tuple[Rows, Found | None]], one a table."""

    tables: Sequence[tuple[int, Keys]]
    want_found: bool


@dataclass(frozen=True, slots=True)
class LookupOrInsert(Call):
    """-> list[Rows], one a table. Sent again after a lost connection, counts may be added twice."""

    tables: Sequence[tuple[int, Keys, Counts | None]]


@dataclass(frozen=True, slots=True)
class ApplyGradients(Push):
    """-> bool: True if it had been applied before it was sent for the first time."""

    tables: Sequence[tuple[int, Keys, Rows]]
    step: int | None


@dataclass(frozen=True, slots=True)
class Assign(Push):
    """-> None."""

    table: int
    keys: Keys
    rows: Rows


@dataclass(frozen=True, slots=True)
class Remove(Push):
    """-> int: rows removed."""

    table: int
    keys: Keys


@dataclass(frozen=True, slots=True)
class Prefetch(Call):
    """-> None."""

    tables: Sequence[tuple[int, Keys]]


@dataclass(frozen=True, slots=True)
class CreateTable(Call):
    """-> Opened."""

    spec: TableSpec


@dataclass(frozen=True, slots=True)
class OpenTable(Call):
    """-> Opened."""

    name: str


@dataclass(frozen=True, slots=True)
class ListTables(Call):
    """-> list[str]."""


@dataclass(frozen=True, slots=True)
class DropTable(Call):
    """-> None."""

    name: str


@dataclass(frozen=True, slots=True)
class SetLearningRate(Call):
    """-> None."""

    table: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Alter(Call):
    """-> None. `change` holds any of learning_rate, dram, nvme; None lifts a cap."""

    table: int
    change: dict[str, float | int | None]


@dataclass(frozen=True, slots=True)
class Size(Call):
    """-> int."""

    table: int


@dataclass(frozen=True, slots=True)
class KeysOf(Call):
    """-> tuple[Keys, int]: keys of buckets [bucket, next), and next; 4096 ends the walk."""

    table: int
    bucket: int


@dataclass(frozen=True, slots=True)
class TableStats(Call):
    """-> dict[str, int]."""

    table: int


@dataclass(frozen=True, slots=True)
class Stats(Call):
    """-> dict[str, int]."""


@dataclass(frozen=True, slots=True)
class Flush(Call):
    """-> None."""
