"""What a store takes of its machine unless told otherwise, and the least that it needs.

One answer for the server and for `local:`. Memory and cores are those that this process may use: a
control group (a container, a systemd unit) may allow less than the machine has.
"""

import contextlib
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from hybridps.errors import ConfigError
from hybridps.sizes import format_size

MIB: Final = 1 << 20
# Below this the index, one page per stream and the statistics do not fit.
DRAM_MIN_BYTES: Final = 8 * MIB
# Below this a journal, one open segment per stream and room for compaction do not fit.
NVME_MIN_BYTES: Final = 64 * MIB
# Below this the segments that demotion and its compaction work with do not fit.
COLD_MIN_BYTES: Final = 16 * MIB

_GROUPS: Final = "/sys/fs/cgroup"


def default_dram(ram: int) -> int:
    """A quarter of the memory, in whole MiB."""
    return max(ram // 4 // MIB * MIB, DRAM_MIN_BYTES)


def default_nvme(free: int, place: str, remedy: str) -> int:
    """Three quarters of the free disk, in whole MiB. Raises ConfigError when that is too little."""
    return _three_quarters(free, NVME_MIN_BYTES, f"at {place}", remedy)


def default_cold(directory: Path, remedy: str) -> int:
    """Three quarters of the free disk of a cold directory, in whole MiB, counting what it holds.

    Raises: ConfigError when that is too little, or the disk cannot be asked.
    """
    free = free_disk_bytes(directory)
    return _three_quarters(free, COLD_MIN_BYTES, f"at the cold directory {directory}", remedy)


def _three_quarters(free: int, least: int, where: str, remedy: str) -> int:
    if free * 3 // 4 < least:
        raise ConfigError(
            f"three quarters of the {format_size(free)} free {where} are less than the"
            f" {format_size(least)} that a store needs; free some, or {remedy}"
        )
    return free * 3 // 4 // MIB * MIB


def ram_bytes() -> int:
    """Memory this process may use: the machine's, or the smallest limit of its control groups."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [*_settings("", "memory.max"), *_settings("memory", "memory.limit_in_bytes")]
    return min([total, *(int(text) for text in limits if text.isdecimal())])


def cores() -> int:
    """Processor cores that this process may keep busy: those it may run on, or its quota."""
    may_run = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [text.split() for text in _settings("", "cpu.max")]
    old = zip(
        _settings("cpu", "cpu.cfs_quota_us"), _settings("cpu", "cpu.cfs_period_us"), strict=False
    )
    counts = [
        math.ceil(int(quota) / int(period))
        for quota, period in (*quotas, *old)
        if quota.isdecimal() and period.isdecimal() and int(period) > 0
    ]
    return max(1, min([may_run or 1, *counts]))


def free_disk_bytes(directory: Path) -> int:
    """Bytes free where `directory` is or would be, plus what it holds already.

    Raises: ConfigError when the disk cannot be asked.
    """
    parent = directory.absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    try:
        return shutil.disk_usage(parent).free + _held_bytes(directory)
    except OSError as error:
        raise ConfigError(
            f"cannot measure the free disk of {parent}: {error.strerror};"
            " say how much nvme to take, or give another directory"
        ) from None


def _held_bytes(directory: Path) -> int:
    held = 0
    for path in directory.rglob("*"):
        # A store that is at work may have deleted it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            held += path.stat().st_blocks * 512 if path.is_file() else 0
    return held


def _settings(controller: str, name: str) -> Iterator[str]:
    """The file `name` of this process's control group and of all above it, where there is one.

    `controller` is that of version 1, which has a tree for each; "" means version 2. Inside a
    container its own group is the root of what can be seen, whatever path the kernel tells.
    """
    root = Path(_GROUPS, controller)
    for group in _lineage(_own_group(controller)):
        with contextlib.suppress(OSError, ValueError):
            yield root.joinpath(group, name).read_text(encoding="ascii").strip()


def _own_group(controller: str) -> Path:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return Path(path.lstrip("/"))
    return Path()


def _lineage(group: Path) -> Iterator[Path]:
    yield group
    yield from group.parents
