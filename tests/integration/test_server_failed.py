"""Goal: a server whose store has failed says so to supervisors and in its log, once, and ends if it
was told to. Method: strace makes the syncs of a real server fail."""

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from support.server import ServerProcess

import hybridps as hps

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace fails syncs")

# The first syncs are those of the opening and of the table.
FAILING = "inject=fdatasync:error=EIO:when=40+"
PREFIX = ("strace", "-f", "--seccomp-bpf", "-qqq", "-o", os.devnull, "-e", "trace=fdatasync")
PREFIX += ("-e", FAILING)
PATIENCE_S = 60.0


def push_until_refused(url: str) -> None:
    with hps.connect(url, timeout=20) as ps:
        table = ps.create_table(hps.TableSpec("t", 4, hps.SGD(0.1)))
        pushes = (table.apply_gradients([1], np.ones((1, 4), np.float32)) for _ in range(1000))
        with pytest.raises(hps.UnavailableError):
            list(pushes)


def test_a_failed_store_is_not_ready_and_logs_once(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d", "--durability", "always", prefix=PREFIX) as server:
        assert server.http("/readyz") == (200, "ready\n")
        push_until_refused(server.url)
        end = time.monotonic() + PATIENCE_S
        while server.http("/readyz")[0] == 200 and time.monotonic() < end:
            time.sleep(0.05)
        status, text = server.http("/readyz")
        assert status == 503
        assert text.startswith("failed\nfailed: ")
        assert server.http("/livez") == (200, "ok\n")
        events = [e for e in server.events() if e["event"].startswith("store failed")]
        assert [e["level"] for e in events] == ["error"]
        assert "Input/output error" in events[0]["reason"]


def test_it_ends_for_its_supervisor_if_told_to(tmp_path: Path) -> None:
    arguments = ("--durability", "always")
    restart = {"HYBRIDPS_RESTART_ON_FAILURE": "true", "HYBRIDPS_DRAIN": "1"}
    with ServerProcess(tmp_path / "d", *arguments, prefix=PREFIX, **restart) as server:
        push_until_refused(server.url)
        assert server.wait() == 1
        assert server.stderr().splitlines()[-1].startswith("hybridps: ")
