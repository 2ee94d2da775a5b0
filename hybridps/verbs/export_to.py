"""`export_to` and `import_from`: a table to a file and back, page by page, all servers at once.

What a file holds and what fits is decided in `hybridps.export`; here rows move.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybridps import _core, export
from hybridps.errors import BadInputError, HybridPSError
from hybridps.export.columns import STATISTICS, Columns, Piece, Reader, check_fit, check_values
from hybridps.placement import CELLS
from hybridps.types import TableSpec
from hybridps.verbs import router
from hybridps.verbs.assign import Assign
from hybridps.verbs.batches import Batch, TableRef
from hybridps.verbs.calls import Rows
from hybridps.verbs.catalog import Catalog, Handle, TableFace, resolve
from hybridps.verbs.changes import PAGE_BYTES
from hybridps.verbs.face import Addressed, Run, Steps, verb
from hybridps.verbs.open_table import Opened, OpenTable
from hybridps.verbs.whole import ExportRows, ImportRows, WholePage

# Told how many rows were moved since it was told the last time.
Progress = Callable[[int], object]
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What goes into a file."""

    slots: bool
    statistics: bool
    cutoff: float
    progress: Progress | None


def _spec_of(catalog: Catalog, handle: Handle) -> Steps[tuple[TableRef, TableSpec, int]]:
    """A table, its spec, and numbers of slots a row."""
    ref = yield from resolve(catalog, handle)
    opened: list[Opened] = yield catalog.everywhere(OpenTable(handle.name))
    spec = opened[0].spec
    return ref, spec, _core.check_spec(spec.to_json()) - spec.dim


def _taken_apart(page: WholePage, dim: int, slots: int, cutoff: float) -> Piece:
    """The columns of a page, without rows that are tiny in every column."""
    keys, rows = page.keys, page.rows
    if rows.shape[1] != dim + slots + len(STATISTICS):
        raise HybridPSError(f"the server's rows are of {rows.shape[1]} numbers, not dim {dim}")
    if cutoff > 0:
        kept = (np.abs(rows[:, :dim]) >= cutoff).any(axis=1)
        keys, rows = keys[kept], rows[kept]
    told = np.ascontiguousarray(rows[:, dim + slots :]).view(np.uint32)
    return {
        "key": keys,
        "value": rows[:, :dim],
        "slots": rows[:, dim : dim + slots],
        "frequency": told[:, 0],
        "last_seen": told[:, 1],
    }


def export_to(catalog: Catalog, handle: Handle, path: Path, wanted: _Wanted) -> Steps[int]:
    """Rows that were written. The file appears when it is whole, or not at all."""
    ref, spec, slots = yield from _spec_of(catalog, handle)
    slots = slots if wanted.slots else 0
    columns = Columns.of(spec, slots, with_statistics=wanted.slots or wanted.statistics)
    writer = export.write_file(path, columns)
    written = 0
    try:
        due = dict.fromkeys(range(catalog.shards), 0)
        while due:
            asked: list[Addressed] = [
                (shard, ExportRows(ref.ids[shard], at, CELLS, slots > 0, PAGE_BYTES))
                for shard, at in due.items()
            ]
            pages: list[WholePage] = yield asked
            for shard, page in zip(list(due), pages, strict=True):
                due[shard] = page.next
                if page.is_last:
                    del due[shard]
                if len(page.keys):
                    piece = _taken_apart(page, spec.dim, slots, wanted.cutoff)
                    writer.add(piece)
                    written += len(piece["key"])
                    if wanted.progress is not None:
                        wanted.progress(len(page.keys))
        writer.finish()
    finally:
        writer.abandon()
    return written


def _checked(reader: Reader, path: Path) -> None:
    """Reads all of it: what cannot be stored, or read, is found before anything changes."""
    rows = 0
    for piece in reader.pieces():
        check_values(path, piece, rows)
        rows += len(piece["key"])
    if rows != reader.rows:
        raise BadInputError(f"{path}: it holds {rows} rows of {reader.rows}; it is cut")


def _packed(piece: Piece) -> Rows:
    """The columns of a piece as whole rows."""
    told = np.stack([piece[name] for name in STATISTICS], axis=1).astype(np.uint32, copy=False)
    parts = [piece["value"], *([piece["slots"]] if "slots" in piece else []), told.view(np.float32)]
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _calls(catalog: Catalog, ref: TableRef, piece: Piece) -> list[Addressed]:
    """The last row of each key, to its server: whole if anything comes with the values."""
    keys = np.ascontiguousarray(piece["key"]).astype(np.uint64, copy=False)
    split = router.split(Batch(ref, keys, keys.shape), catalog.shards, catalog.limits())
    is_whole = len(piece) > len(("key", "value"))
    call: Any = ImportRows if is_whole else Assign
    rows = _packed(piece) if is_whole else np.ascontiguousarray(piece["value"], np.float32)
    last = split.last(rows)
    parts = [(shard, split.part(shard)) for shard in split.shards()]
    return [(shard, call([(ref.ids[shard], split.keys[at], last[at])])) for shard, at in parts]


def _fitting(pieces: Iterator[Piece], columns: Columns) -> Iterator[Piece]:
    """What goes in, with zeros for statistics that do not come with slots."""
    names = [column.name for column in columns.columns]
    for piece in pieces:
        taken = {name: piece[name] for name in names}
        if "slots" in taken:
            zeros = np.zeros(len(piece["key"]), np.uint32)
            taken |= {name: taken.get(name, zeros) for name in STATISTICS}
        yield taken


def import_from(
    catalog: Catalog,
    handle: Handle,
    path: Path,
    slots: bool | None,
    progress: Progress | None,
) -> Steps[int]:
    """Rows that were read. All is checked before the first one is set."""
    ref, spec, numbers = yield from _spec_of(catalog, handle)
    reader = export.open_file(path)
    try:
        fitting = check_fit(path, reader.columns, spec, numbers, take_slots=slots)
        reader.columns = fitting
        _checked(reader, path)
        for piece in _fitting(reader.pieces(), fitting):
            yield _calls(catalog, ref, piece)
            if progress is not None:
                progress(len(piece["key"]))
        return reader.rows
    finally:
        reader.close()


def _on_file(path: Path, steps: Steps[int]) -> Steps[int]:
    """What the file system says is told of the file."""
    try:
        return (yield from steps)
    except HybridPSError:
        raise
    except OSError as error:
        raise BadInputError(f"{path}: {error.strerror or error}; give another place") from error


def _cutoff(cutoff: object) -> float:
    is_number = isinstance(cutoff, int | float) and not isinstance(cutoff, bool)
    if not is_number or not cutoff >= 0:  # type: ignore[operator]
        raise BadInputError(f"cutoff is {cutoff!r}; give a number from 0 on")
    return float(cutoff)  # type: ignore[arg-type]


class FilesOfTable(TableFace):
    """`Table.export_to` and `import_from`."""

    @verb
    def export_to(
        self,
        path: PathLike,
        *,
        slots: bool = False,
        statistics: bool = False,
        cutoff: float = 0.0,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Run[int]:
        """Writes all rows to a file; returns how many. safetensors, Parquet or npz, by the ending.

        Columns: key uint64[n], value float32[n, dim]; perhaps slots float32[n, k], frequency and
        last_seen uint32[n]. Each row is as of some moment of the export, each key stands there
        once, in no order. The file appears when it is whole, beside it nothing stays. Memory: a few
        mebibytes, whatever the size; disk: twice the file on its way, but for Parquet. No visit:
        nothing is counted, and rows stay in their tiers. In asyncio files are written on the loop,
        a mebibyte at a time.

        Args:    slots: optimizer slots and statistics too, so that training can go on from it.
                 statistics: training reads and last use without slots.
                 cutoff: rows of which every |number| of the value is below it are left out.
                 progress: called with the rows of each step; `tqdm.update` will do.
                 timeout: seconds of each call to a server.
        Raises:  BadInputError, ConfigError (Parquet without pyarrow), TableNotFoundError,
                  CorruptionError, UnavailableError, DeadlineError.
        """
        wanted = _Wanted(slots, statistics, _cutoff(cutoff), progress)
        steps = export_to(self._catalog, self._handle, Path(path), wanted)
        return self._run(_on_file(Path(path), steps), timeout)

    @verb
    def import_from(
        self,
        path: PathLike,
        *,
        slots: bool | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Run[int]:
        """Sets rows from a file of `export_to`, or of another program; returns how many it held.

        Keys are created or overwritten, all others stay; of repeated keys the last wins. Statistics
        are taken if they are there; without slots absent keys get fresh ones, present ones keep
        theirs. The file is read once to check all of it, then once more: what does not fit the
        table is refused by name before anything changes. A call that fails later leaves the rows
        that were set by then.

        Args:    slots: None takes them if they are there, and refuses those of another optimizer;
                 False takes the values alone; True asks for them.
                 progress, timeout: as in `export_to`.
        Raises:  BadInputError naming what does not fit, else as `export_to`; StoreFullError.
        """
        steps = import_from(self._catalog, self._handle, Path(path), slots, progress)
        return self._run(_on_file(Path(path), steps), timeout)
