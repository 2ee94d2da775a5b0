"""A real server process on loopback: started, watched, stopped, killed; never left behind."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self

# Generous: a busy machine may stop for long, and only a server that hangs is waited for.
START_S = 120.0
STOP_S = 60.0


def command(*arguments: str) -> list[str]:
    """The command line of a server."""
    return [sys.executable, "-m", "hybridps.server", *arguments]


def environment(**changes: str) -> dict[str, str]:
    """The environment without settings of a server in it."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HYBRIDPS_")}
    return plain | changes


def run_to_end(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a server that is expected to stop by itself."""
    return subprocess.run(
        command(*arguments),
        env=environment(**environ),
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )


class ServerProcess:
    """A server on ephemeral ports; a context manager that leaves nothing running."""

    def __init__(
        self,
        data: Path,
        *arguments: str,
        dram: str = "16MiB",
        nvme: str = "256MiB",
        prefix: tuple[str, ...] = (),
        **environ: str,
    ) -> None:
        self.data = data
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - see close
        defaults = {"--listen": "127.0.0.1:0", "--ops": "127.0.0.1:0", "--dram": dram}
        defaults |= {"--nvme": nvme, "--data": str(data)}
        given = [a for name, a in defaults.items() if name not in arguments for a in (name, a)]
        self._is_traced = bool(prefix)
        self.process = subprocess.Popen(
            [*prefix, *command(*given, *arguments)],
            env=environment(**environ),
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        try:
            self.ready_line = self._wait_ready()
            self.ready = next(e for e in self.events() if e["event"] == "ready")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The server itself, also below the tracer of `prefix`."""
        pid = self.process.pid
        if not self._is_traced:
            return pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
        return int(children[0])

    @property
    def url(self) -> str:
        """hps://host:port or hps+unix://path, from the ready line."""
        return self.ready_line.split()[2]

    @property
    def address(self) -> tuple[str, int] | str:
        """What a socket connects to."""
        if self.url.startswith("hps+unix://"):
            return self.url.removeprefix("hps+unix://")
        host, _, port = self.url.removeprefix("hps://").rpartition(":")
        return host, int(port)

    def stderr(self) -> str:
        """All that the process has logged."""
        self._log.seek(0)
        return self._log.read()

    def events(self) -> list[dict[str, Any]]:
        """The log's lines, each of which must be JSON. They are written a moment after what they
        tell of.
        """
        text, before = self.stderr(), ""
        while text != before and self.process.poll() is None:
            time.sleep(0.1)
            text, before = self.stderr(), text
        return [json.loads(line) for line in text.splitlines()]

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of a GET from the ops port."""
        try:
            url = self.ready["ops"] + path
            with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - ours
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """The exit code, when the process has ended."""
        return self.process.wait(STOP_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.send(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        """SIGKILL: what a crash of the process leaves."""
        self.send(signal.SIGKILL)
        self.wait()

    def close(self) -> None:
        """Ends the process if it runs still."""
        if self.process.poll() is None:
            with contextlib.suppress(OSError, IndexError):
                os.kill(self.pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._log.close()

    def _wait_ready(self) -> str:
        assert self.process.stdout is not None
        pipe, line, deadline = self.process.stdout.fileno(), b"", time.monotonic() + START_S
        while not line.endswith(b"\n"):
            if select.select([pipe], [], [], 0.1)[0]:
                part = os.read(pipe, 4096)
                if not part:
                    raise AssertionError(f"server ended: {self.wait()} {self.stderr()}")
                line += part
            assert time.monotonic() < deadline, f"no ready line in {START_S} s: {self.stderr()}"
        return line.decode().rstrip("\n")
