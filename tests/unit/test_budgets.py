"""Goal: defaults fit what this process may use of the machine. Method: the files in which the
kernel tells the limits of control groups, and the disk, are pretended."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hybridps import budgets
from hybridps.budgets import MIB
from hybridps.client.urls import LocalSettings, local_settings
from hybridps.config import load
from hybridps.errors import ConfigError

GIB = 1 << 30


class Usage(NamedTuple):
    """What `shutil.disk_usage` tells."""

    total: int
    used: int
    free: int


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Files by path; no control group unless a test puts one here."""
    files: dict[str, str] = {}
    real = Path.read_text

    def read_text(path: Path, *args: object, **kwargs: object) -> str:
        if str(path) in files:
            return files[str(path)]
        if str(path).startswith(("/sys/fs/cgroup", "/proc/self/cgroup")):
            raise FileNotFoundError(str(path))
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    return files


@pytest.mark.usefixtures("kernel")
def test_without_groups_the_machine_counts() -> None:
    assert budgets.ram_bytes() > 64 * MIB
    assert budgets.cores() >= 1


@pytest.mark.parametrize(
    "files",
    [
        # A container: its own group is the root of what it sees.
        {"/proc/self/cgroup": "0::/", "/sys/fs/cgroup/memory.max": f"{GIB}"},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}"},
        # A systemd unit, limited itself or by its slice.
        {"/proc/self/cgroup": "0::/a.slice/b", "/sys/fs/cgroup/a.slice/b/memory.max": f"{GIB}"},
        {
            "/proc/self/cgroup": "0::/a.slice/b",
            "/sys/fs/cgroup/a.slice/b/memory.max": "max",
            "/sys/fs/cgroup/a.slice/memory.max": f"{GIB}",
        },
        # Version 1, where the path of the host is not to be seen inside.
        {
            "/proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}",
        },
        {
            "/proc/self/cgroup": "4:memory:/docker/abc",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "/sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes": f"{GIB}",
        },
    ],
)
def test_memory_is_that_of_the_tightest_group(
    kernel: dict[str, str], files: dict[str, str], tmp_path: Path
) -> None:
    kernel.update(files)
    assert budgets.ram_bytes() == GIB
    assert load(["--nvme", "64MiB"], {}).dram_bytes == GIB // 4
    assert _local(tmp_path).dram == GIB // 4


@pytest.mark.parametrize(
    "files",
    [
        {"/sys/fs/cgroup/cpu.max": "150000 100000"},
        {
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "150000",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    ],
)
def test_cores_are_those_of_the_quota(
    kernel: dict[str, str], files: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert budgets.cores() == 64
    kernel["/sys/fs/cgroup/cpu.max"] = "max 100000"
    kernel["/sys/fs/cgroup/cpu/cpu.cfs_quota_us"] = "-1"
    kernel["/sys/fs/cgroup/cpu/cpu.cfs_period_us"] = "100000"
    assert budgets.cores() == 64
    kernel.update(files)
    assert budgets.cores() == 2
    assert load(["--nvme", "64MiB"], {}).threads == 2
    assert _local(tmp_path).threads == 2


def test_what_the_store_holds_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each opening of a store that grows would give it less."""
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "segment").write_bytes(b"x" * (80 * MIB))
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(0, 0, 40 * MIB))
    expected = 120 * MIB * 3 // 4
    assert abs(_local(tmp_path).nvme - expected) <= MIB
    assert abs(load(["--data", str(tmp_path)], {}).nvme_bytes - expected) <= MIB
    (folder / "segment").unlink()
    with pytest.raises(ConfigError, match="give nvme="):
        _local(tmp_path)


def _local(path: Path) -> LocalSettings:
    none: dict[str, Any] = dict.fromkeys(
        ("dram", "nvme", "cold", "durability", "threads", "scrub_rate")
    )
    return local_settings(f"local:{path}", **none)
