"""Goal: the looks at the system see what is there. Method: memory and files of known size."""

import os
from pathlib import Path

import pytest
from support.system import page_cache_bytes, peak_rss_bytes, rss_bytes

MIB = 1 << 20


def test_page_cache_counts_what_was_read_and_not_what_was_dropped(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "file"
    file.parent.mkdir()
    file.write_bytes(os.urandom(4 * MIB))
    (tmp_path / "empty").touch()
    with file.open("rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if page_cache_bytes(file) == 4 * MIB:
            pytest.skip("this file system lives in memory")
        assert page_cache_bytes(tmp_path) < MIB
        opened.read()
    assert page_cache_bytes(file) == 4 * MIB
    assert page_cache_bytes(tmp_path) == 4 * MIB


def test_peak_memory_remembers() -> None:
    pid = os.getpid()
    block = bytearray(64 * MIB)
    block[::4096] = b"x" * len(block[::4096])
    held = rss_bytes(pid)
    del block
    assert held >= 64 * MIB
    assert peak_rss_bytes(pid) >= held - 4 * MIB  # Counts of single threads lag a little.
