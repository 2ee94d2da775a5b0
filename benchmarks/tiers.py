"""The tiers: training with DRAM for the index and a share of the rows, beside all in DRAM.

    python benchmarks/tiers.py [--ids 2000000] [--cold 100000] [--samples 200000]
                               [--shares 0.15,0.5] [--look-ahead 2] [--plot curve.svg]

Two servers, one planted log, DeepFM in alternating segments. The first `--cold` samples are the
cold start, in which the cache learns what is hot: its ratio is told apart from that of the
`--samples` that follow. Then the counters are held against what the operating system knows: bytes
read and written of /proc/PID/io, CPU time, resident memory, and the pages of the store's files that
sit in the page cache. Several shares are run one after the other, each beside all in DRAM.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from plots import plot_lines
from yardstick import print_machine, print_result

from hybridps.demo import command, scale, sizing
from hybridps.demo.planted import PlantedLog
from hybridps.demo.server import MIB
from hybridps.demo.training import alternate, batches

SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=2_000_000)
    parser.add_argument("--cold", type=int, default=100_000)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--shares", type=lambda s: [float(x) for x in s.split(",")], default=[0.15])
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--look-ahead", type=int, default=scale.LOOK_AHEAD,
                        help="batches that hybridps_torch.prefetch asks for; 0: none")  # fmt: skip
    parser.add_argument("--plot", type=Path, help="an SVG file: the ratio by share")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the stores go: the device to measure")  # fmt: skip
    flags = parser.parse_args()
    print_machine("torch")
    ratios = []
    for share in flags.shares:
        options = command.Options(
            data=None, model="deepfm", dim=flags.dim, batch=scale.BATCH, epochs=1, rate=None,
            seed=SEED, scale=flags.ids, samples=flags.cold + flags.samples, share=share,
            directory=flags.directory, bars=False,
        )  # fmt: skip
        ratios.append(run(options, flags.cold, flags.look_ahead))
    percents = [100 * share for share in flags.shares]
    plot_lines(flags.plot, {"steady": (percents, ratios)}, title="Training speed by rows in DRAM",
               x="rows in DRAM, %, beside the index", y="of all in DRAM")  # fmt: skip


def run(options: command.Options, cold: int, look_ahead: int) -> float:
    """Trains both sides through the cold start and on; returns the steady ratio."""
    log = PlantedLog(options.scale, seed=SEED)
    data = log.dataset(options.samples, scale.BATCH)
    tables = scale.sizes(options, data)
    steps = list(batches(data.train, scale.BATCH, 1, SEED))
    with contextlib.ExitStack() as stack:
        full = scale.enter(stack, options, data, sizing.store_bytes(tables, 1.0), tables)
        scale.fill(full, log, options)
        budget = sizing.tiered(full.ps.stats(), options.share)
        tiered = scale.enter(stack, options, data, budget, tables)
        before_fill = process_io(tiered)
        scale.fill(tiered, log, options)
        full.trainer.look_ahead = tiered.trainer.look_ahead = look_ahead
        border = cold // scale.BATCH
        train("tiers-cold", steps[:border], full, tiered, options)
        ratio = train("tiers", steps[border:], full, tiered, options)
        report_io(tiered, before_fill)
    return ratio


@dataclasses.dataclass(frozen=True)
class Moment:
    """What a server had counted at one moment."""

    stats: dict[str, int]
    cpu_s: float

    @classmethod
    def of(cls, side: scale.Side) -> "Moment":
        """Now."""
        fields = Path(f"/proc/{side.server.pid}/stat").read_text(encoding="ascii").rsplit(")")[1]
        user, system = fields.split()[11:13]
        return cls(side.ps.stats(), (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))


def train(
    name: str, steps: list, full: scale.Side, tiered: scale.Side, options: command.Options
) -> float:
    """Trains both sides in turns and prints how they did; returns tiered over full."""
    if not steps:
        return float("nan")
    before = Moment.of(tiered)
    seconds = alternate([full.trainer, tiered.trainer], steps, scale.SEGMENT_STEPS)
    after = Moment.of(tiered)
    samples = sum(map(len, steps))
    rates = [samples / sum(of_side) for of_side in seconds]
    delta = {key: after.stats[key] - before.stats[key] for key in after.stats}
    misses = delta["cache_misses"]
    print(f"{name}: {options.share:.0%} of {after.stats['keys']:,} rows in DRAM, limit "
          f"{after.stats['dram_limit'] / MIB:.0f} MiB: all in DRAM {rates[0]:,.0f} samples/s, "
          f"tiered {rates[1]:,.0f} samples/s")  # fmt: skip
    print_result(
        name, share=options.share, look_ahead=tiered.trainer.look_ahead, samples=samples,
        samples_s_full=rates[0], samples_s_tiered=rates[1], ratio=rates[1] / rates[0],
        hit_ratio=delta["cache_hits"] / max(1, delta["cache_hits"] + misses),
        probes_per_unique_key=delta["probes"] / max(1, delta["unique_keys"]),
        device_reads_per_miss=delta["device_reads"] / max(1, misses),
        reads_per_batch=(delta["device_reads"] + delta["background_reads"]) / len(steps),
        misses_per_batch=misses / len(steps),
        server_cpu_ms_per_batch=(after.cpu_s - before.cpu_s) / len(steps) * 1e3,
    )  # fmt: skip
    return rates[1] / rates[0]


def report_io(side: scale.Side, start: tuple[int, int]) -> None:
    """Our byte counters beside the kernel's, since the server started."""
    side.ps.flush()
    stats, (read, written) = side.ps.stats(), process_io(side)
    read, written = read - start[0], written - start[1]
    files = side.server.room / "store"
    print_result(
        "tiers-io", device_bytes_read=stats["device_bytes_read"], kernel_bytes_read=read,
        device_bytes_written=stats["device_bytes_written"], kernel_bytes_written=written,
        dram_limit_mib=stats["dram_limit"] / MIB, rss_mib=side.server.resident_bytes() / MIB,
        page_cache_mib=page_cache_bytes(files) / MIB,
    )  # fmt: skip


def process_io(side: scale.Side) -> tuple[int, int]:
    """(bytes read, bytes written) of devices by the server, as the kernel counts them."""
    lines = Path(f"/proc/{side.server.pid}/io").read_text(encoding="ascii").splitlines()
    counters = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return counters["read_bytes"], counters["write_bytes"]


def page_cache_bytes(directory: Path) -> float:
    """What fincore(1) finds of the directory's files in the page cache; nan without fincore."""
    if shutil.which("fincore") is None:
        return float("nan")
    files = [str(path) for path in directory.rglob("*") if path.is_file()]
    output = subprocess.check_output(["fincore", "--json", "--bytes", *files])
    return float(sum(int(entry["res"]) for entry in json.loads(output)["fincore"]))


if __name__ == "__main__":
    main()
