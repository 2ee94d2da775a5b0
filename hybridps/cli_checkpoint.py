"""The commands `checkpoint create|list|verify|restore|prune`."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

from hybridps import (
    ParameterServer,
    checkpoints,
    prune_checkpoints,
    verify_checkpoint,
)
from hybridps.sizes import format_size

Told = dict[str, Any]


def add_create(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps checkpoint create`."""
    parser.add_argument("path", metavar="PATH", help="directory of the server, made if absent")
    parser.add_argument("--step", type=int, help="the trainer's step, to restore it by")
    parser.add_argument("--full", action="store_true", help="no delta on the newest one")
    parser.add_argument("--rate", help='bytes a second of each server, such as "100MiB"')


def add_restore(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps checkpoint restore`."""
    parser.add_argument("path", metavar="PATH", help="directory, as the servers reach it")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--id", help="the checkpoint; the newest if left out")
    which.add_argument("--step", type=int, help="the newest of this step")
    parser.add_argument("--tables", help="names, with commas between; all if left out")
    parser.add_argument("--no-slots", action="store_true", help="values alone, with fresh slots")


def add_list(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps checkpoint list`."""
    parser.add_argument("path", metavar="PATH", help="directory of checkpoints")


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps checkpoint verify`."""
    add_list(parser)
    parser.add_argument("--id", help="the checkpoint; all in the directory if left out")


def add_prune(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps checkpoint prune`."""
    add_list(parser)
    parser.add_argument("--keep", type=int, default=3, help="the newest so many stay (3)")
    parser.add_argument("--every", help='and of older ones one for each, such as "1d"')


def create(ps: ParameterServer, flags: argparse.Namespace) -> Told:
    """Makes one; a bar shows how far it is."""
    with Bar("checkpoint") as bar:
        made = ps.checkpoint(
            flags.path, step=flags.step, full=flags.full, rate=flags.rate, progress=bar.show
        )
    return dataclasses.asdict(made)


def restore(ps: ParameterServer, flags: argparse.Namespace) -> Told:
    """Rows by table."""
    names = None if flags.tables is None else flags.tables.split(",")
    with Bar("restore") as bar:
        rows = ps.restore(
            flags.path,
            id=flags.id,
            step=flags.step,
            tables=names,
            slots=not flags.no_slots,
            progress=bar.show,
        )
    return {"tables": rows}


def list_all(flags: argparse.Namespace) -> list[Told]:
    """All in a directory, oldest first."""
    return [dataclasses.asdict(found) for found in checkpoints(flags.path)]


def verify(flags: argparse.Namespace) -> Told:
    """The one that was asked for, or the newest."""
    return dataclasses.asdict(verify_checkpoint(flags.path, flags.id))


def prune(flags: argparse.Namespace) -> Told:
    """Ids of those that were deleted."""
    return {"deleted": prune_checkpoints(flags.path, flags.keep, flags.every)}


def show_one(told: Told) -> str:
    """One checkpoint in a line."""
    made = datetime.fromtimestamp(told["created"], UTC)
    rows, size = sum(told["tables"].values()), format_size(told["bytes"])
    step = "" if told["step"] is None else f"  step {told['step']}"
    on = "" if told["parent"] is None else f" on {told['parent']}"
    return f"{told['id']}  {made:%Y-%m-%d %H:%M:%S}Z  {told['kind']}{on}  {rows} rows, {size}{step}"


def show_list(told: list[Told]) -> str:
    """A line each."""
    return "\n".join(map(show_one, told)) if told else "no checkpoints"


def show_verified(told: Told) -> str:
    """That it is whole."""
    return f"whole: {show_one(told)}"


def show_restored(told: Told) -> str:
    """A line a table."""
    return "\n".join(f"{name}  {rows} rows" for name, rows in sorted(told["tables"].items()))


def show_pruned(told: Told) -> str:
    """A line for each that was deleted."""
    return "\n".join(told["deleted"]) if told["deleted"] else "nothing to delete"


class Bar:
    """A progress bar in bytes; nothing where stderr is no terminal, or tqdm is not installed."""

    def __init__(self, name: str) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm  # noqa: PLC0415 - optional
            except ImportError:
                return
            bar: Callable[..., Any] = tqdm
            self._bar = bar(unit="B", unit_scale=True, unit_divisor=1024, desc=name, leave=False)

    def show(self, done: int, total: int) -> None:
        """So far."""
        if self._bar is not None:
            self._bar.total = max(total, done)
            self._bar.update(done - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Clears it away."""
        if self._bar is not None:
            self._bar.close()
