"""npz: a zip archive of NumPy arrays, uncompressed, as `numpy.load` reads it. Metadata stand in an
array `metadata` of bytes, JSON. Pickled arrays are refused, whoever wrote them.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Final

import numpy as np
from numpy.lib import format as npy

from hybridps.errors import BadInputError
from hybridps.export.columns import Column, Columns, Piece, Reader, parse_json, texts_of
from hybridps.export.spill import Spilled, SpillingWriter

_METADATA: Final = "metadata"
_METADATA_MAX: Final = 1 << 20
_HEADER_MAX: Final = 10_000
_ARRAYS_MAX: Final = 1000
_ENDING: Final = ".npy"
# What NumPy, and what it parses headers with, say of bytes that are none.
_UNREADABLE: Final = (
    *(ValueError, SyntaxError, TokenError, RecursionError, MemoryError),
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
)


class FileWriter(SpillingWriter):
    """A file on its way."""

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(path, columns, _compose)


def _compose(file: IO[bytes], columns: Columns, rows: int, spilled: list[Spilled]) -> None:
    text = np.frombuffer(json.dumps(dict(columns.metadata)).encode(), np.uint8)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open(_METADATA + _ENDING, "w") as entry:
            npy.write_array(entry, text, allow_pickle=False)
        for column, column_file in zip(columns.columns, spilled, strict=True):
            with archive.open(column.name + _ENDING, "w", force_zip64=True) as entry:
                header = {
                    "descr": npy.dtype_to_descr(column.dtype),
                    "fortran_order": False,
                    "shape": column.shape(rows),
                }
                npy.write_array_header_1_0(entry, header)
                for part in column_file.bytes():
                    entry.write(part)


class FileReader(Reader):
    """A file that is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise BadInputError(f"{path}: it is cut, or no npz file: {error}") from None
        try:
            self._read_headers()
        except BaseException:
            self._archive.close()
            raise

    def _read_headers(self) -> None:
        names = self._archive.namelist()
        if len(names) > _ARRAYS_MAX or any(not name.endswith(_ENDING) for name in names):
            raise BadInputError(f"{self._path}: it holds other things than arrays")
        columns, rows, metadata = [], set(), {}
        for name in (name.removesuffix(_ENDING) for name in names):
            with self._open(name) as entry:
                column, count = self._header(name, entry)
                if name == _METADATA:
                    text = entry.read(_METADATA_MAX)
                    metadata = texts_of(self._path, parse_json(self._path, text))
                    continue
            columns.append(column)
            rows.add(count)
        if len(rows) > 1:
            raise BadInputError(f"{self._path}: its arrays have {sorted(rows)} rows; give as many")
        self.rows = rows.pop() if rows else 0
        self.columns = Columns(tuple(columns), metadata)

    def _open(self, name: str) -> IO[bytes]:
        try:
            return self._archive.open(name + _ENDING)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
            raise BadInputError(f"{self._path}: array {name!r} cannot be read: {error}") from None

    def _header(self, name: str, entry: IO[bytes]) -> tuple[Column, int]:
        """Of an array; its numbers come next."""
        try:
            version = npy.read_magic(entry)
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, is_fortran, dtype = read(entry, max_header_size=_HEADER_MAX)
        except _UNREADABLE as error:
            raise BadInputError(f"{self._path}: array {name!r} cannot be read: {error}") from None
        if dtype.hasobject:
            raise BadInputError(
                f"{self._path}: array {name!r} is pickled, which could run anything; save it as"
                " plain numbers"
            )
        if len(shape) not in {1, 2} or (is_fortran and len(shape) > 1):
            raise BadInputError(f"{self._path}: array {name!r} of {shape}; give C-contiguous rows")
        return Column(name, dtype, shape[1] if len(shape) > 1 else None), shape[0]

    def pieces(self) -> Iterator[Piece]:
        """Some rows of every column at a time; whole arrays are held against their checksums."""
        step = self.columns.piece_rows
        with ExitStack() as opened:
            entries = []
            for column in self.columns.columns:
                entry = opened.enter_context(self._open(column.name))
                self._header(column.name, entry)
                entries.append(entry)
            for first in range(0, self.rows, step):
                rows = min(step, self.rows - first)
                each = zip(self.columns.columns, entries, strict=True)
                yield {column.name: self._numbers(column, entry, rows) for column, entry in each}
            for column, entry in zip(self.columns.columns, entries, strict=True):
                if self._bytes(column.name, entry, 1):
                    raise BadInputError(f"{self._path}: array {column.name!r} is longer than told")

    def _numbers(self, column: Column, entry: IO[bytes], rows: int) -> Any:
        wanted = rows * column.row_bytes
        data = self._bytes(column.name, entry, wanted)
        if len(data) != wanted:
            raise BadInputError(f"{self._path}: array {column.name!r} is cut")
        return np.frombuffer(data, column.dtype).reshape(column.shape(rows))

    def _bytes(self, name: str, entry: IO[bytes], count: int) -> bytes:
        try:
            return entry.read(count)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise BadInputError(f"{self._path}: array {name!r} is damaged: {error}") from None

    def close(self) -> None:
        """It is read no more."""
        self._archive.close()
