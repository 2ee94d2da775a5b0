"""A hybridps server as a child process, gone with its directory when the block ends."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

# A large journal takes minutes to replay; a process that ends is noticed at once.
READY_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
READY = b"hybridps ready"
MIB = 1 << 20


def plain_environment() -> dict[str, str]:
    """This process's environment without settings of servers: the flags say all."""
    return {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDPS_")}


class Server:
    """`python -m hybridps.server` on a Unix socket, in a directory of its own.

    Args:
        dram_bytes: the server's whole budget of memory for the store.
        nvme_bytes: cap of all files in its directory.
        directory: where to make the temporary directory; the system's own place by default.
        durability: as of the server's flag.
    """

    def __init__(
        self,
        dram_bytes: int,
        nvme_bytes: int = 16 << 30,
        directory: Path | None = None,
        durability: str = "process",
    ) -> None:
        self.dram_bytes = dram_bytes
        self._nvme_bytes = nvme_bytes
        self._parent, self._durability = directory, durability
        self._process: subprocess.Popen[bytes] | None = None
        self._room: Path | None = None

    @property
    def url(self) -> str:
        """What `hybridps.connect` takes."""
        return f"hps+unix://{self.room / 'socket'}"

    @property
    def room(self) -> Path:
        """The temporary directory."""
        if self._room is None:
            raise RuntimeError("the server has not been started")
        return self._room

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._process is None:
            raise RuntimeError("the server has not been started")
        return self._process.pid

    def __enter__(self) -> Self:
        self._room = Path(tempfile.mkdtemp(prefix="hybridps-", dir=self._parent))
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the process and removes its directory."""
        self.end()
        if self._room is not None:
            shutil.rmtree(self._room, ignore_errors=True)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ends the process by this signal, after a while by SIGKILL; the directory stays."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def resident_bytes(self) -> int:
        """Resident set of the server process, or 0 where /proc does not tell."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except OSError:
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def start(self) -> None:
        """Starts the process, again after `end`; returns when it is ready."""
        flags = {
            "--data": self.room / "store", "--unix": self.room / "socket",
            "--listen": "127.0.0.1:0", "--ops": "127.0.0.1:0",
            "--dram": f"{-(-self.dram_bytes // MIB)}MiB",
            "--nvme": f"{-(-self._nvme_bytes // MIB)}MiB", "--durability": self._durability,
        }  # fmt: skip
        command = [sys.executable, "-m", "hybridps.server"]
        command += [str(part) for pair in flags.items() for part in pair]
        log = (self.room / "server.log").open("wb")
        with log:
            self._process = subprocess.Popen(  # noqa: S603
                command, stdout=subprocess.PIPE, stderr=log, env=plain_environment()
            )
        self._await_ready()

    def _await_ready(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            raise RuntimeError("the server has not been started")
        deadline = time.monotonic() + READY_TIMEOUT_S
        seen = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while READY not in seen or not seen.endswith(b"\n"):
                left = deadline - time.monotonic()
                chunk = os.read(process.stdout.fileno(), 65536) if selector.select(left) else b""
                if not chunk:
                    log = (self.room / "server.log").read_text(errors="replace")
                    raise RuntimeError(f"the server did not become ready: {log[-2000:] or seen!r}")
                seen += chunk
