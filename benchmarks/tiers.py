"""The tiers: training with DRAM for the index and a share of the rows, beside all in DRAM.

    python benchmarks/tiers.py [--ids 2000000] [--samples 200000] [--share 0.15] [--look-ahead 2]

Two servers, one planted log, DeepFM in alternating segments. Then the counters are held against
what the operating system knows: bytes read and written of /proc/PID/io, resident memory, and the
pages of the store's files that sit in the page cache.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

from yardstick import print_machine, print_result

from hybridps.demo import command, scale, sizing
from hybridps.demo.planted import PlantedLog
from hybridps.demo.progress import Progress
from hybridps.demo.server import MIB
from hybridps.demo.training import alternate, batches

SEED = 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=2_000_000)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--share", type=float, default=0.15)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--look-ahead", type=int, default=scale.LOOK_AHEAD,
                        help="batches that hybridps_torch.prefetch asks for; 0: none")  # fmt: skip
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the stores go: the device to measure")  # fmt: skip
    flags = parser.parse_args()
    print_machine("torch")
    options = command.Options(
        data=None, model="deepfm", dim=flags.dim, batch=scale.BATCH, epochs=1, rate=None, seed=SEED,
        scale=flags.ids, samples=flags.samples, share=flags.share, directory=flags.directory,
        bars=False,
    )  # fmt: skip
    run(options, flags.look_ahead)


def run(options: command.Options, look_ahead: int) -> None:
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
        before = tiered.ps.stats()
        full.trainer.look_ahead = tiered.trainer.look_ahead = look_ahead
        with Progress("training", 2 * options.samples, shown=options.bars) as bar:
            seconds = alternate(
                [full.trainer, tiered.trainer], steps, scale.SEGMENT_STEPS, bar.advance
            )
        rates = [options.samples / sum(s) for s in seconds]
        report_speed(options, rates, tiered, before)
        report_io(tiered, before_fill)


def report_speed(
    options: command.Options, rates: list[float], side: scale.Side, before: dict[str, int]
) -> None:
    stats = side.ps.stats()
    delta = {name: stats[name] - before[name] for name in stats}
    misses = delta["cache_misses"]
    print(f"{stats['keys']:,} ids, {stats['rows_dram']:,} rows in DRAM, limit "
          f"{stats['dram_limit'] / MIB:.0f} MiB")  # fmt: skip
    print(f"all in DRAM {rates[0]:,.0f} samples/s, tiered {rates[1]:,.0f} samples/s")
    print_result(
        "tiers", share=options.share, look_ahead=side.trainer.look_ahead,
        samples_s_full=rates[0], samples_s_tiered=rates[1], ratio=rates[1] / rates[0],
        hit_ratio=delta["cache_hits"] / max(1, delta["cache_hits"] + misses),
        probes_per_unique_key=delta["probes"] / max(1, delta["unique_keys"]),
        device_reads_per_miss=delta["device_reads"] / max(1, misses),
    )  # fmt: skip


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
