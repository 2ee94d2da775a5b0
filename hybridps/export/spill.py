"""Columns that are collected before it is known how many rows there will be: a file each, beside
the one that is to be, without a name of their own as far as the system allows.

Formats that hold one array after the other are made of them at the end.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from hybridps.export.columns import Column, Columns, Piece, Writer, sync_and_rename, temporary_of

_COPY_BYTES: Final = 1 << 20


class Spilled:
    """One column."""

    def __init__(self, column: Column, directory: Path) -> None:
        self.column = column
        self._file = tempfile.TemporaryFile(dir=directory, prefix=".hybridps-")  # noqa: SIM115

    def add(self, piece: Piece) -> None:
        """Some more rows."""
        numbers = piece[self.column.name]
        self._file.write(numbers.astype(self.column.dtype, copy=False).tobytes())

    def bytes(self) -> Iterator[bytes]:
        """All of it, some at a time."""
        self._file.seek(0)
        while part := self._file.read(_COPY_BYTES):
            yield part

    def close(self) -> None:
        """It goes."""
        self._file.close()


class SpillingWriter(Writer):
    """A file that `compose` makes of all columns and the number of rows."""

    def __init__(
        self,
        path: Path,
        columns: Columns,
        compose: Callable[[IO[bytes], Columns, int, list[Spilled]], None],
    ) -> None:
        self._path = path
        self._columns = columns
        self._compose = compose
        self._rows = 0
        self._temporary = temporary_of(path)
        self._spilled = [Spilled(column, path.parent) for column in columns.columns]

    def add(self, piece: Piece) -> None:
        """Column by column."""
        self._rows += len(piece["key"])
        for spilled in self._spilled:
            spilled.add(piece)

    def finish(self) -> None:
        """Header and columns, one after the other."""
        with self._temporary.open("xb") as file:
            self._compose(file, self._columns, self._rows, self._spilled)
        sync_and_rename(self._temporary, self._path)
        self.abandon()

    def abandon(self) -> None:
        """All that is ours goes."""
        for spilled in self._spilled:
            spilled.close()
        self._temporary.unlink(missing_ok=True)
