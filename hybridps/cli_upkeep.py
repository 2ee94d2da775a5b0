"""The commands `scrub` and `inspect`: what an operator does when a disk, or a row, is in doubt."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Protocol, Self

from hybridps import BadInputError, ParameterServer, Scrubbed
from hybridps.sizes import format_size, parse_size

# Findings that are told one by one.
TOLD_MAX: Final = 1000
_STEP_BYTES: Final = 8 << 20


class Progress(Protocol):
    """A bar, or nothing."""

    total: float | None

    def update(self, n: float) -> object:
        """So many bytes more."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> object: ...


class Quiet:
    """No progress is shown: stderr is no terminal, or tqdm is not installed."""

    total: float | None = None

    def update(self, n: float) -> None:
        """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Shows nothing."""


def add_scrub(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps scrub`."""
    parser.add_argument("store", nargs="?", help="server, or local:PATH; as --url")
    parser.add_argument(
        "--rate", help='bytes a second, such as "100MiB"; as fast as it goes if left out'
    )


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps inspect`."""
    parser.add_argument("table", help="table")
    parser.add_argument("key", help="an integer, or a text that stands for a key (hybridps.key_of)")
    parser.add_argument(
        "--text", action="store_true", help="KEY is a text, though it looks like a number"
    )


def scrub(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, Any]:
    """One pass over all servers. The result's `damaged` tells how it went: 0 is clean."""
    rate = None if flags.rate is None else parse_size(flags.rate, "--rate")
    if rate == 0:
        raise BadInputError("--rate is 0; give bytes a second, or leave it out")
    step_bytes = _STEP_BYTES if rate is None else min(_STEP_BYTES, rate)
    records = read = damaged = 0
    told: list[dict[str, Any]] = []
    started = time.monotonic()
    with _progress() as progress:
        for step in ps.scrub(step_bytes):
            records, read = records + step.records, read + step.bytes
            damaged += len(step.damaged)
            told.extend(dataclasses.asdict(found) for found in step.damaged)
            del told[TOLD_MAX:]
            _show_step(progress, step)
            if rate is not None:
                time.sleep(max(0.0, read / rate - (time.monotonic() - started)))
    seconds = time.monotonic() - started
    return {
        "records": records,
        "bytes": read,
        "seconds": seconds,
        "damaged": damaged,
        "found": told,
    }


def show_scrub(result: dict[str, Any]) -> str:
    """A line a finding, and a sum."""
    lines = [_told(found) for found in result["found"]]
    if result["damaged"] > len(lines):
        lines.append(f"... and {result['damaged'] - len(lines)} more")
    size = format_size(result["bytes"])
    verdict = f"{result['damaged']} damaged" if result["damaged"] else "clean"
    lines.append(f"{verdict}: {result['records']} records, {size}, {result['seconds']:.1f} s")
    return "\n".join(lines)


def inspect(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, Any]:
    """One key of one table, with its age in seconds."""
    (row,) = ps.table(flags.table).inspect([_key(flags.key, is_text=flags.text)])
    told = dataclasses.asdict(row)
    told["age_s"] = max(0, int(time.time()) - row.last_seen) if row.last_seen else None
    return {"table": flags.table, **told}


def show_inspect(told: dict[str, Any]) -> str:
    """A line a field, in words where they help."""
    if told["tier"] is None:
        return f"key {told['key']} has no row in table {told['table']}"
    shown = {name: value for name, value in told.items() if name not in ("table", "age_s")}
    if told["age_s"] is None:
        shown["last_seen"] = "never"
    else:
        moment = datetime.fromtimestamp(told["last_seen"], UTC)
        shown["last_seen"] = f"{moment:%Y-%m-%dT%H:%M:%SZ} ({told['age_s']} s ago)"
    shown["place"] = "not written yet" if told["place"] is None else f"byte {told['place']}"
    shown["dirty"] = "yes" if told["dirty"] else "no"
    if told["error"] is None:
        del shown["error"]
    width = max(map(len, shown))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown.items())


def _key(text: str, *, is_text: bool) -> int | str:
    """An integer where it reads like one, else a text."""
    try:
        return text if is_text else int(text, 0)
    except ValueError:
        return text


def _told(found: dict[str, Any]) -> str:
    whose = "no row's" if found["table"] is None else f"table {found['table']} key {found['key']}"
    return f"damaged: {whose}, byte {found['offset']}: {found['fate']}"


def _progress() -> Progress:
    if not sys.stderr.isatty():
        return Quiet()
    try:
        from tqdm import tqdm  # noqa: PLC0415 - optional: it comes with the demonstration
    except ImportError:
        return Quiet()
    bar: Callable[..., Progress] = tqdm
    return bar(unit="B", unit_scale=True, unit_divisor=1024, desc="scrub", leave=False)


def _show_step(progress: Progress, step: Scrubbed) -> None:
    progress.total = max(progress.total or 0, step.total_bytes)
    progress.update(step.bytes)
