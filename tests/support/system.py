"""What the operating system knows of a process and of files: memory, I/O, page cache."""

import ctypes
import mmap
import os
from pathlib import Path

PAGE_BYTES = mmap.PAGESIZE


def peak_rss_bytes(pid: int) -> int:
    """The most memory the process ever had resident."""
    return _status_kib(pid, "VmHWM") * 1024


def rss_bytes(pid: int) -> int:
    """Memory the process has resident now."""
    return _status_kib(pid, "VmRSS") * 1024


def device_bytes(pid: int) -> tuple[int, int]:
    """Bytes read from and written to devices by the process, as the kernel counts them."""
    lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    counters = {k: int(v) for k, v in (line.split(": ") for line in lines)}
    return counters["read_bytes"], counters["write_bytes"]


def page_cache_bytes(path: Path) -> int:
    """Bytes of a file, or of all files below a directory, that are in the page cache.

    The same figure as fincore(1): mincore(2) over a mapping that touches no page.
    """
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(_resident_bytes(file) for file in files)


def _resident_bytes(file: Path) -> int:
    size = file.stat().st_size
    if size == 0:
        return 0
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    descriptor = os.open(file, os.O_RDONLY)
    try:
        place = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if place == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), f"mmap of {file}")
        pages = ctypes.create_string_buffer((size + PAGE_BYTES - 1) // PAGE_BYTES)
        try:
            if libc.mincore(place, size, pages) != 0:
                raise OSError(ctypes.get_errno(), f"mincore of {file}")
        finally:
            libc.munmap(place, size)
    finally:
        os.close(descriptor)
    return sum(page & 1 for page in pages.raw) * PAGE_BYTES


def _status_kib(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise AssertionError(f"no {name} in /proc/{pid}/status")
