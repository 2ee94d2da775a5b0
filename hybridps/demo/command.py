"""The command line of the demonstration: `hybridps demo` and `python -m hybridps.demo`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridps.demo import report

EXIT_BAD_INPUT = 2
EXIT_TERMINATED = 128 + signal.SIGTERM
NEEDED = ("torch", "tqdm", "hybridps_torch")


@dataclass(frozen=True)
class Options:
    """What the flags say; the parts read it and never change it."""

    data: Path | None
    model: str
    dim: int
    batch: int
    epochs: int
    rate: float | None
    seed: int
    scale: int
    samples: int
    share: float
    directory: Path
    bars: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the demonstration."""
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help="train on a Criteo tab-separated file or an .npz set instead of census",
    )
    add("--only", choices=("accuracy", "scale"), help="one of the two parts; both by default")
    add("--model", choices=("deepfm", "dlrm", "widedeep"), default="deepfm")
    add("--dim", type=int, default=16, help="floats of an id's vector (16)")
    add("--batch", type=int, default=1024, help="samples a step of the first part (1024)")
    add("--epochs", type=int, default=1, help="passes over the data of the first part (1)")
    add("--seed", type=int, default=1)
    add("--rate", type=float, help="learning rate of the embeddings; each data set has its own")
    add(
        "--scale",
        type=int,
        default=2_000_000,
        metavar="IDS",
        help="ids of the planted log (2000000)",
    )
    add("--samples", type=int, default=400_000, help="samples trained on in the second part")
    add("--share", type=float, default=0.15, help="share of the rows that DRAM holds (0.15)")
    add(
        "--directory",
        type=Path,
        default=Path(tempfile.gettempdir()),
        metavar="DIR",
        help="where the servers' temporary directories go",
    )
    add("--json", action="store_true", help="print one JSON object instead of tables")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the flags and runs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="hybridps demo", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


def run(flags: argparse.Namespace) -> int:
    """Runs the parts that the flags ask for and prints what they found."""
    wrong = _wrong(flags)
    if wrong is not None:
        return _refuse(wrong, as_json=flags.json)
    names = {field.name for field in dataclasses.fields(Options)} - {"bars"}
    options = Options(**{name: getattr(flags, name) for name in names}, bars=sys.stderr.isatty())
    # Ended from outside it still ends its servers and removes their directories.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    try:
        results = _parts(options, flags.only, quiet=flags.json)
    except (ValueError, OSError) as error:
        return _refuse(str(error), as_json=flags.json)
    if flags.json:
        print(json.dumps(results, indent=1))
    return 0


def _parts(options: Options, only: str | None, *, quiet: bool) -> dict[str, object]:
    # Imported here: both bring torch, which takes a second and may be absent.
    from hybridps.demo import accuracy, datasets, scale  # noqa: PLC0415

    results: dict[str, object] = {}
    if only != "scale":
        dataset = datasets.load(options.data) if options.data else datasets.census()
        accurate = accuracy.run(options, dataset)
        results["accuracy"] = dataclasses.asdict(accurate)
        if not quiet:
            print(report.accuracy_table(accurate))
    if only != "accuracy":
        scaled = scale.run(options)
        results["scale"] = dataclasses.asdict(scaled)
        if not quiet:
            print(report.scale_table(scaled))
    return results


def _wrong(flags: argparse.Namespace) -> str | None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"the demonstration needs {', '.join(missing)}: run `make setup`"
    for name, low in (("dim", 1), ("batch", 1), ("epochs", 1), ("scale", 1000), ("samples", 1)):
        if getattr(flags, name) < low:
            return f"--{name} is {getattr(flags, name)}; give at least {low}"
    if not 0 < flags.share <= 1:
        return f"--share is {flags.share}; give more than 0 and at most 1"
    return None


def _refuse(text: str, *, as_json: bool) -> int:
    told = json.dumps({"error": "BadInputError", "message": text})
    print(told if as_json else f"hybridps demo: {text}", file=sys.stderr)
    return EXIT_BAD_INPUT
