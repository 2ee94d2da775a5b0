"""Opening a store again: from the start of the server's process to its first answer, and further.

    python benchmarks/opening.py [--rows 4000000] [--dim 16] [--share 0.15] [--rounds 3]

A server with DRAM for the index and a share of the rows is filled by pushes; then it is ended and
started again: `--rounds` times by SIGTERM, after which there is nothing to replay, and once by
kill -9 after one more push to every row, of which the journal holds what was not checkpointed. An
empty directory shows how much of the time is the interpreter's.

Three moments are timed from the start of the process: its ready line, the answer to a first lookup
of 100 keys, and the end of the load of the index, for which `size` waits. With an image of the
index the first two do not depend on the number of rows.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from yardstick import BATCH, print_machine, print_result

import hybridps as hps
from hybridps.demo import sizing
from hybridps.demo.datasets import mix
from hybridps.demo.server import MIB, Server

FOOTER_BYTES = 22  # a record's part of its segment's footer
FIRST_KEYS = 100


@dataclass(frozen=True)
class Moment:
    """What a server has taken since its start."""

    seconds: float
    cpu_seconds: float
    read_bytes: int


@dataclass(frozen=True)
class Opening:
    """One start."""

    ready: Moment
    answered: Moment
    loaded: Moment
    peak_rss_bytes: int
    journal_bytes: int
    image_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.15)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the store goes: the device to measure")  # fmt: skip
    flags = parser.parse_args()
    print_machine()
    spec = hps.TableSpec("bench", dim=flags.dim, optimizer=hps.Adagrad(0.05))
    dram = sizing.store_bytes([sizing.TableSize(spec, flags.rows)], flags.share)
    with Server(dram, directory=flags.directory) as server:
        with hps.connect(server.url) as ps:
            ps.create_table(spec)
        report("empty", 0, [reopen(server, signal.SIGTERM, 0) for _ in range(flags.rounds)])
        push_to_all(server, spec, flags.rows)
        clean = [reopen(server, signal.SIGTERM, flags.rows) for _ in range(flags.rounds)]
        report("clean", flags.rows, clean)
        push_to_all(server, spec, flags.rows)
        report("kill", flags.rows, [reopen(server, signal.SIGKILL, flags.rows)])


def push_to_all(server: Server, spec: hps.TableSpec, rows: int) -> None:
    """One push to every row, which makes those that are absent."""
    gradients = np.full((BATCH, spec.dim), 0.01, np.float32)
    with hps.connect(server.url, timeout=60.0) as ps:
        table = ps.create_table(spec)
        for low in range(0, rows, BATCH):
            keys = mix(np.arange(low, min(low + BATCH, rows), dtype=np.uint64))
            table.apply_gradients(keys, gradients[: len(keys)])
        if table.size() != rows:
            raise RuntimeError(f"{table.size()} rows where {rows} were pushed")


def reopen(server: Server, number: signal.Signals, rows: int) -> Opening:
    """Ends the server and times its next start."""
    server.end(number)
    store = server.room / "store"
    journal_bytes = sum(path.stat().st_size for path in (store / "journal").glob("*.log"))
    image = store / "index.image"
    image_bytes = image.stat().st_size if image.exists() else 0
    start = time.perf_counter()
    server.start()
    ready = moment(server, start)
    with hps.connect(server.url, timeout=600.0) as ps:
        table = ps.table("bench")
        keys = mix(np.arange(0, max(rows, 1), max(rows // FIRST_KEYS, 1), dtype=np.uint64))
        table.lookup(keys[:FIRST_KEYS])
        answered = moment(server, start)
        if table.size() != rows:
            raise RuntimeError(f"{table.size()} rows where {rows} were")
        loaded = moment(server, start)
    return Opening(
        ready=ready,
        answered=answered,
        loaded=loaded,
        peak_rss_bytes=number_of(Path(f"/proc/{server.pid}/status"), "VmHWM") << 10,
        journal_bytes=journal_bytes,
        image_bytes=image_bytes,
    )


def moment(server: Server, start: float) -> Moment:
    """What the server has taken by now."""
    process = Path(f"/proc/{server.pid}")
    return Moment(
        seconds=time.perf_counter() - start,
        cpu_seconds=cpu_seconds_of(process),
        read_bytes=number_of(process / "io", "read_bytes"),
    )


def number_of(path: Path, name: str) -> int:
    """The number behind `name: ` in a file of /proc."""
    lines = path.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def cpu_seconds_of(process: Path) -> float:
    """User and system time of all its threads, the kernel's on their behalf included."""
    fields = (process / "stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def report(kind: str, rows: int, openings: list[Opening]) -> None:
    """Medians of the rounds."""
    rss = statistics.median(opening.peak_rss_bytes for opening in openings) / MIB
    journal = statistics.median(opening.journal_bytes for opening in openings) / MIB
    image = statistics.median(opening.image_bytes for opening in openings) / MIB
    print(f"{kind:5} {rows:,} rows: journal of {journal:,.0f} MiB, image of {image:,.1f} MiB, "
          f"peak RSS {rss:,.0f} MiB")  # fmt: skip
    figures = {}
    for name in ("ready", "answered", "loaded"):
        moments = [getattr(opening, name) for opening in openings]
        seconds = statistics.median(moment.seconds for moment in moments)
        cpu = statistics.median(moment.cpu_seconds for moment in moments)
        read = statistics.median(moment.read_bytes for moment in moments) / MIB
        print(f"      {name:8} {seconds:6.2f} s, {cpu:.2f} s of CPU, {read:,.1f} MiB read")
        figures |= {f"{name}_s": seconds, f"{name}_cpu_s": cpu, f"{name}_read_mib": read}
    print_result(
        f"opening-{kind}", rows=rows, footers_mib=rows * FOOTER_BYTES / MIB, journal_mib=journal,
        image_mib=image, peak_rss_mib=rss, **figures,
    )  # fmt: skip


if __name__ == "__main__":
    main()
