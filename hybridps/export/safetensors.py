"""safetensors: u64 length of a JSON header, the header, the arrays one after the other.

Written and read here: the format is that small. https://github.com/huggingface/safetensors
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from hybridps.errors import BadInputError
from hybridps.export.columns import Column, Columns, Piece, Reader, parse_json, texts_of
from hybridps.export.spill import Spilled, SpillingWriter

# The library refuses headers beyond 100 MB; ours have some hundred bytes.
_HEADER_MAX: Final = 16 << 20
_LENGTH_BYTES: Final = 8
_ALIGNMENT: Final = 8
_DTYPES: Final = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "I16": "<i2", "U8": "|u1", "I8": "|i1", "BOOL": "|b1",
}  # fmt: skip
_NAMES: Final = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
_METADATA: Final = "__metadata__"


class FileWriter(SpillingWriter):
    """A file on its way."""

    def __init__(self, path: Path, columns: Columns) -> None:
        super().__init__(path, columns, _compose)


def _compose(file: IO[bytes], columns: Columns, rows: int, spilled: list[Spilled]) -> None:
    header: dict[str, Any] = {_METADATA: dict(columns.metadata)}
    start = 0
    for column in columns.columns:
        end = start + rows * column.row_bytes
        header[column.name] = {
            "dtype": _NAMES[column.dtype],
            "shape": column.shape(rows),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little"))
    file.write(text)
    for column_file in spilled:
        for part in column_file.bytes():
            file.write(part)


class FileReader(Reader):
    """A file that is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        try:
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> None:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
        self._data = _LENGTH_BYTES + length
        if length > min(_HEADER_MAX, size - _LENGTH_BYTES):
            raise BadInputError(
                f"{self._path}: a header of {length} bytes in a file of {size}, at most"
                f" {_HEADER_MAX} are read; it is cut, or no safetensors file"
            )
        header = parse_json(self._path, self._file.read(length))
        if not isinstance(header, dict):
            raise BadInputError(f"{self._path}: its header is no object")
        metadata = texts_of(self._path, header.pop(_METADATA, {}))
        self._starts: dict[str, int] = {}
        columns, rows = [], set()
        for name, told in header.items():
            column, count = self._column(name, told, size - self._data)
            columns.append(column)
            rows.add(count)
        if len(rows) > 1:
            raise BadInputError(f"{self._path}: its arrays have {sorted(rows)} rows; give as many")
        self.rows = rows.pop() if rows else 0
        self.columns = Columns(tuple(columns), metadata)

    def _column(self, name: str, told: Any, data_bytes: int) -> tuple[Column, int]:
        try:
            dtype, shape = np.dtype(_DTYPES[told["dtype"]]), list(told["shape"])
            start, end = told["data_offsets"]
            numbers = [*shape, start, end]
        except (KeyError, TypeError, ValueError):
            raise BadInputError(f"{self._path}: array {name!r} is not described whole") from None
        is_whole = all(isinstance(n, int) and n >= 0 for n in numbers) and len(shape) in {1, 2}
        if not is_whole or not start <= end <= data_bytes:
            raise BadInputError(
                f"{self._path}: array {name!r} of shape {shape} lies at {start} to {end} of"
                f" {data_bytes} bytes; the file is cut, or its header wrong"
            )
        column = Column(name, dtype, shape[1] if len(shape) > 1 else None)
        if end - start != shape[0] * column.row_bytes:
            raise BadInputError(
                f"{self._path}: array {name!r} of shape {shape} takes {end - start} bytes"
            )
        self._starts[name] = start
        return column, shape[0]

    def pieces(self) -> Iterator[Piece]:
        """Some rows of every column at a time."""
        step = self.columns.piece_rows
        for first in range(0, self.rows, step):
            rows = min(step, self.rows - first)
            yield {
                column.name: self._numbers(column, first, rows) for column in self.columns.columns
            }

    def _numbers(self, column: Column, first: int, rows: int) -> Any:
        self._file.seek(self._data + self._starts[column.name] + first * column.row_bytes)
        wanted = rows * column.row_bytes
        data = self._file.read(wanted)
        if len(data) != wanted:
            raise BadInputError(f"{self._path}: it was cut while it was read")
        return np.frombuffer(data, column.dtype).reshape(column.shape(rows))

    def close(self) -> None:
        """It is read no more."""
        self._file.close()
