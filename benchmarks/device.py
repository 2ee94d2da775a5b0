"""The device's limit: look-ups that nearly all miss, beside fio's random reads of the same disk.

    python benchmarks/device.py [--keys 2000000] [--rounds 6]

fio reads 4 KiB at random through io_uring with registered buffers and files, past the page cache,
at the depth of the engine's own batches and with one job; the table's keys are drawn uniformly with
DRAM for the index and 2 % of the rows. They take turns, and reads a second and CPU time a read are
compared. Needs fio(1); without it only our side is shown.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from yardstick import print_machine, print_result

import hybridps as hps
from hybridps.demo.datasets import mix

DIM = 64
ROW_BYTES = 32 + 4 * DIM
DEPTH = 128
BATCH = 8_192
SHARE = 0.02
INDEX_BYTES = 16
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the files go: the device to measure")  # fmt: skip
    flags = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(prefix="hybridps-bench-", dir=flags.directory) as room:
        dram = int(flags.keys * (INDEX_BYTES + SHARE * ROW_BYTES)) + 24 * MIB
        with hps.connect(f"local:{room}/store", dram=dram, nvme=f"{flags.keys * 3 * ROW_BYTES}",
                         durability="none") as ps:  # fmt: skip
            table = ps.create_table(hps.TableSpec("bench", dim=DIM, optimizer=hps.SGD(0.1)))
            keys = mix(np.arange(flags.keys, dtype=np.uint64))
            for low in range(0, len(keys), BATCH):
                table.lookup_or_insert(keys[low : low + BATCH])
            ps.flush()
            compare(table, keys, Fio(Path(room)), flags.rounds)


class Fio:
    """fio on a file of its own."""

    def __init__(self, room: Path) -> None:
        self.program, self.file = shutil.which("fio"), room / "fio"
        if self.program is None:
            print("fio is skipped: install fio")
        else:
            self.run("--rw=write", "--bs=1M", "--end_fsync=1")

    def run(self, *flags: str) -> dict:
        """One job's JSON."""
        output = subprocess.check_output(
            [str(self.program), "--name=bench", f"--filename={self.file}", "--size=1G",
             "--direct=1", "--ioengine=io_uring", f"--iodepth={DEPTH}", "--output-format=json",
             *flags]
        )  # fmt: skip
        return json.loads(output)["jobs"][0]

    def reads(self) -> tuple[float, float] | None:
        """(reads/s, CPU us a read) of two seconds, or None without fio."""
        if self.program is None:
            return None
        job = self.run(
            "--rw=randread", "--bs=4k", "--norandommap", "--time_based", "--runtime=2",
            "--fixedbufs", "--registerfiles", "--iodepth_batch_submit=32",
            "--iodepth_batch_complete_min=16",
        )  # fmt: skip
        busy = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1e3
        return job["read"]["iops"], busy / job["read"]["total_ios"] * 1e6


def compare(table: hps.Table, keys: np.ndarray, fio: Fio, rounds: int) -> None:
    """Turns of both; medians."""
    random = np.random.default_rng(1)
    ours: list[tuple[float, float, float]] = []
    theirs: list[tuple[float, float]] = []
    for _ in range(rounds):
        ours.append(look_up(table, [random.choice(keys, BATCH) for _ in range(48)]))
        measured = fio.reads()
        if measured is not None:
            theirs.append(measured)
    reads, missed, cpu = (statistics.median(x) for x in zip(*ours, strict=True))
    figures = {"reads_s": reads, "missed_keys_s": missed, "cpu_us_per_missed_key": cpu}
    if theirs:
        iops, fio_cpu = (statistics.median(x) for x in zip(*theirs, strict=True))
        figures |= {"fio_iops": iops, "fio_cpu_us_per_read": fio_cpu, "ratio": reads / iops}
    print(", ".join(f"{name} {value:,.2f}" for name, value in figures.items()))
    print_result("device", **figures)


def look_up(table: hps.Table, batches: list[np.ndarray]) -> tuple[float, float, float]:
    """(device reads/s, missed keys/s, CPU us a missed key, the kernel's included)."""
    before, wall, cpu = table.stats(), time.perf_counter(), time.process_time()
    for batch in batches:
        table.lookup(batch)
    wall, cpu, after = time.perf_counter() - wall, time.process_time() - cpu, table.stats()
    reads = after["device_reads"] - before["device_reads"]
    missed = after["cache_misses"] - before["cache_misses"]
    return reads / wall, missed / wall, cpu / max(1, missed) * 1e6


if __name__ == "__main__":
    main()
