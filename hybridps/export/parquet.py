"""Parquet, by pyarrow, which comes with `pip install hybridps[export]`.

A row group is a few mebibytes; vectors are lists of fixed size, which pandas, DuckDB and others
read as they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from hybridps.errors import BadInputError, ConfigError
from hybridps.export.columns import (
    Column,
    Columns,
    Piece,
    Reader,
    Writer,
    sync_and_rename,
    temporary_of,
)

_GROUP_BYTES: Final = 8 << 20


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - optional
        import pyarrow.parquet as pq  # noqa: PLC0415 - optional
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow: pip install 'hybridps[export]', or give a name that ends in"
            " .safetensors or .npz"
        ) from None
    return pa, pq


class FileWriter(Writer):
    """A file on its way."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._arrow, parquet = _arrow()
        self._path = path
        self._columns = columns
        self._temporary = temporary_of(path)
        fields = [(column.name, self._type(column)) for column in columns.columns]
        self._schema = self._arrow.schema(fields, metadata=dict(columns.metadata))
        self._held: list[Any] = []
        self._held_bytes = 0
        self._writer = parquet.ParquetWriter(self._temporary, self._schema)

    def _type(self, column: Column) -> Any:
        number = self._arrow.from_numpy_dtype(column.dtype)
        return number if column.width is None else self._arrow.list_(number, column.width)

    def add(self, piece: Piece) -> None:
        """A row group is written when enough is there."""
        arrays = [self._array(column, piece[column.name]) for column in self._columns.columns]
        batch = self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= _GROUP_BYTES:
            self._write()

    def _array(self, column: Column, numbers: Any) -> Any:
        # A copy: what a page was read into may be used again.
        flat = self._arrow.array(np.array(numbers, column.dtype).reshape(-1))
        if column.width is None:
            return flat
        return self._arrow.FixedSizeListArray.from_arrays(flat, column.width)

    def _write(self) -> None:
        table = self._arrow.Table.from_batches(self._held, self._schema)
        self._held, self._held_bytes = [], 0
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def finish(self) -> None:
        """The last row group and the footer."""
        self._write()
        self._writer.close()
        sync_and_rename(self._temporary, self._path)

    def abandon(self) -> None:
        """All that is ours goes."""
        if self._writer.is_open:
            self._writer.close()
        self._temporary.unlink(missing_ok=True)


class FileReader(Reader):
    """A file that is read."""

    def __init__(self, path: Path) -> None:
        self._arrow, parquet = _arrow()
        self._path = path
        try:
            self._file = parquet.ParquetFile(path)
            schema = self._file.schema_arrow
        except (self._arrow.ArrowException, OSError) as error:
            raise BadInputError(f"{path}: it is cut, or no Parquet file: {error}") from None
        metadata = {
            name.decode(errors="replace"): text.decode(errors="replace")
            for name, text in (schema.metadata or {}).items()
        }
        self.rows = self._file.metadata.num_rows
        columns = tuple(self._column(field) for field in schema)
        self.columns = Columns(tuple(column for column in columns if column), metadata)

    def _column(self, field: Any) -> Column | None:
        """None for what is no number or vector: it is no column of ours."""
        kind, width = field.type, None
        if self._arrow.types.is_fixed_size_list(kind):
            kind, width = kind.value_type, kind.list_size
        elif self._arrow.types.is_list(kind) or self._arrow.types.is_large_list(kind):
            # As pandas writes vectors: how long each one is will be seen.
            kind, width = kind.value_type, self._width_of(field.name)
        try:
            dtype = np.dtype(kind.to_pandas_dtype()).newbyteorder("<")
        except (NotImplementedError, TypeError):
            return None
        return Column(field.name, dtype, width)

    def _width_of(self, name: str) -> int:
        for batch in self._batches(1, [name]):
            if batch.num_rows and batch.column(0)[0].is_valid:
                return len(batch.column(0)[0])
            break
        return 0

    def _batches(self, rows: int, names: list[str]) -> Iterator[Any]:
        try:
            yield from self._file.iter_batches(rows, columns=names, use_threads=False)
        except (self._arrow.ArrowException, OSError) as error:
            raise BadInputError(f"{self._path}: it is damaged: {error}") from None

    def pieces(self) -> Iterator[Piece]:
        """Some rows of every column at a time."""
        names = [column.name for column in self.columns.columns]
        for batch in self._batches(self.columns.piece_rows, names):
            yield {
                column.name: self._numbers(column, batch.column(column.name))
                for column in self.columns.columns
            }

    def _numbers(self, column: Column, array: Any) -> Any:
        flat = array if column.width is None else array.flatten()
        rows = len(array)
        if array.null_count or flat.null_count or len(flat) != rows * (column.width or 1):
            raise BadInputError(
                f"{self._path}: column {column.name!r} has gaps, or rows of other lengths than"
                f" {column.width}; fill them"
            )
        numbers = flat.to_numpy(zero_copy_only=False)
        return numbers.astype(column.dtype, copy=False).reshape(column.shape(rows))

    def close(self) -> None:
        """It is read no more."""
        self._file.close()
