"""Goal: `hybridps top` beside what was done. Method: a real server at work, the command as a
process."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from support.server import ServerProcess

import hybridps as hps


def test_top_tells_what_a_server_does(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d") as server, hps.connect(server.url) as ps:
        table = ps.create_table(hps.TableSpec("item", 4, hps.SGD(0.1)))
        table.lookup_or_insert(np.arange(1000))
        is_over = threading.Event()

        def work() -> None:
            while not is_over.is_set():
                table.lookup(np.arange(1000))

        worker = threading.Thread(target=work)
        worker.start()
        try:
            command = [sys.executable, "-m", "hybridps.cli", "top", server.ready["ops"], "--once"]
            command += ["--interval", "3"]
            told = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
            shown = subprocess.run(command, capture_output=True, text=True, check=True)
        finally:
            is_over.set()
            worker.join()
    (now,) = json.loads(told.stdout)
    assert now["server"] == server.ready["ops"].removeprefix("http://")
    assert now["keys_per_s"] > 0
    assert now["hit_ratio"] == 1.0
    assert 0 < now["p50_ms"] <= now["p99_ms"]
    assert 0 < now["dram_bytes"] <= now["dram_limit"]
    assert (now["device_reads_per_s"], now["connections"], now["reason"]) == (0.0, 1, None)
    head, line = shown.stdout.splitlines()
    assert head.startswith("server")
    assert "100.0%" in line
    assert told.stderr == shown.stderr == ""
