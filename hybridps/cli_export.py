"""`table export` and `table import`: a table as a file for other programs, and back."""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hybridps import ParameterServer

# Of a call to a server that may be busy with training.
TIMEOUT_S = 60.0


def add_export(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps table export`."""
    parser.add_argument("name", help="table")
    parser.add_argument("path", help="file; .safetensors, .parquet or .npz")
    parser.add_argument("--slots", action="store_true", help="optimizer slots and statistics too")
    parser.add_argument("--statistics", action="store_true", help="counts and last use too")
    parser.add_argument(
        "--cutoff", type=float, default=0.0, help="leave out rows with all numbers below it"
    )
    parser.set_defaults(timeout=TIMEOUT_S)


def add_import(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps table import`."""
    parser.add_argument("name", help="table, which exists")
    parser.add_argument("path", help="file of `table export`, or with columns key and value")
    parser.add_argument("--no-slots", action="store_true", help="take the values alone")
    parser.set_defaults(timeout=TIMEOUT_S)


def export_table(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, Any]:
    """Writes the file; how many rows, and how long it took."""
    table = ps.table(flags.name)
    started = time.monotonic()
    with _progress("export", len(table)) as told:
        rows = table.export_to(
            flags.path,
            slots=flags.slots,
            statistics=flags.statistics,
            cutoff=flags.cutoff,
            progress=told,
        )
    return _moved(flags, rows, started)


def import_table(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, Any]:
    """Reads the file; how many rows, and how long it took."""
    started = time.monotonic()
    with _progress("import", None) as told:
        slots = False if flags.no_slots else None
        rows = ps.table(flags.name).import_from(flags.path, slots=slots, progress=told)
    return _moved(flags, rows, started)


def show(moved: dict[str, Any]) -> str:
    """One line."""
    return f"{moved['table']}: {moved['rows']} rows, {moved['path']}, {moved['seconds']:.1f} s"


def _moved(flags: argparse.Namespace, rows: int, started: float) -> dict[str, Any]:
    seconds = time.monotonic() - started
    return {"table": flags.name, "path": flags.path, "rows": rows, "seconds": seconds}


def _progress(what: str, rows: int | None) -> AbstractContextManager[Callable[[int], object]]:
    if not sys.stderr.isatty():
        return nullcontext(lambda _rows: None)
    try:
        from tqdm import tqdm  # noqa: PLC0415 - optional: it comes with the demonstration
    except ImportError:
        return nullcontext(lambda _rows: None)
    return _Bar(tqdm(total=rows, unit="row", unit_scale=True, desc=what, leave=False))


class _Bar(AbstractContextManager[Callable[[int], object]]):
    """A bar of tqdm, as what is told of progress."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def __enter__(self) -> Callable[[int], object]:
        update: Callable[[int], object] = self._bar.update
        return update

    def __exit__(self, *error: object) -> None:
        self._bar.close()
