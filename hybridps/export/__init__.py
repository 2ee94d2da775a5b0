"""Tables as files for other programs: safetensors, Parquet or npz, by the ending of the name.

`columns` says what a file holds and what fits a table; a format is a writer and a reader of such
columns, piece by piece, in memory that does not grow with the table. The room knows no client and
no server: the verbs that move the rows are `hybridps.verbs.export_to`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from hybridps.errors import BadInputError
from hybridps.export import npz, parquet, safetensors
from hybridps.export.columns import Columns, Piece, Reader, Writer

_Format = tuple[Callable[[Path, Columns], Writer], Callable[[Path], Reader]]
_FORMATS: Final[dict[str, _Format]] = {
    ".safetensors": (safetensors.FileWriter, safetensors.FileReader),
    ".parquet": (parquet.FileWriter, parquet.FileReader),
    ".npz": (npz.FileWriter, npz.FileReader),
}

__all__ = ["Columns", "Piece", "Reader", "Writer", "open_file", "write_file"]


def write_file(path: Path, columns: Columns) -> Writer:
    """A file of those columns. It appears under its name when it is finished, whole."""
    writer, _ = _FORMATS[_ending(path)]
    return writer(path, columns)


def open_file(path: Path) -> Reader:
    """A file that `write_file`, or another program, has written; checked as far as its header.

    Raises: BadInputError naming the file and what is wrong with it.
    """
    _, reader = _FORMATS[_ending(path)]
    if not path.is_file():
        raise BadInputError(f"{path}: there is no such file")
    return reader(path)


def _ending(path: Path) -> str:
    ending = path.suffix.lower()
    if ending not in _FORMATS:
        raise BadInputError(f"{path}: its name ends in none of {', '.join(_FORMATS)}; rename it")
    return ending
