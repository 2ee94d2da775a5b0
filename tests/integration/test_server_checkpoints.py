"""Goal: a server that is told so makes checkpoints by itself, keeps as many as it is told, and goes
on where one cannot be made.

Method: a real server with a period of a second, and a client that trains until enough were made.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from support.clients import needs_server
from support.server import ServerProcess

import hybridps as hps

pytestmark = needs_server
PATIENCE_S = 120.0


def settings(path: Path) -> dict[str, str]:
    return {
        "HYBRIDPS_CHECKPOINT_PATH": str(path),
        "HYBRIDPS_CHECKPOINT_EVERY": "1s",
        "HYBRIDPS_CHECKPOINT_KEEP": "1",
    }


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def test_checkpoints_come_by_themselves(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    with ServerProcess(tmp_path / "data", **settings(path)) as server:
        with hps.connect(server.url) as ps:
            table = ps.create_table(hps.TableSpec("t", 4, hps.SGD(1.0), hps.Zeros()))

            def pushed_and_saved(rows: int) -> bool:
                table.apply_gradients(np.arange(rows), np.ones((rows, 4), np.float32))
                made = hps.checkpoints(path)
                return bool(made) and made[-1].tables.get("t") == rows

            wait_for(lambda: pushed_and_saved(10))
            wait_for(lambda: pushed_and_saved(20))
        newest = hps.verify_checkpoint(path)
        # What it is built on stays, however few are to be kept.
        assert (newest.kind, newest.tables) == ("delta", {"t": 20})
        assert any(event["event"] == "checkpoint made" for event in server.events())


def test_what_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "saved"
    path.write_text("in the way")

    def told(server: ServerProcess) -> bool:
        failed = "checkpoint failed; it is tried again"
        return any(event["event"] == failed for event in server.events())

    with ServerProcess(tmp_path / "data", **settings(path)) as server:
        wait_for(lambda: told(server))
        with hps.connect(server.url) as ps:
            ps.create_table(hps.TableSpec("t", 4, hps.SGD(1.0)))
        path.unlink()
        wait_for(lambda: hps.checkpoints(path))
