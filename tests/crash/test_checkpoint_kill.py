"""Goal: a server that is killed while it makes checkpoints, prunes and restores leaves the newest
whole one usable, and its tables as they were before a restore or as they are after it.

Method: kill -9 at seeded moments; each push adds one to every key, so all rows are alike.
"""

import contextlib
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
from support.campaign import rounds
from support.clients import needs_server
from support.server import ServerProcess

import hybridps as hps

pytestmark = needs_server
KEYS = np.arange(2000, dtype=np.uint64)


def work(url: str, path: Path) -> None:
    """Pushes, saves, restores and prunes until the server is gone."""
    with contextlib.suppress(hps.HybridPSError), hps.connect(url, timeout=5.0) as ps:
        table = ps.table("t")
        while True:
            for _ in range(3):
                table.apply_gradients(KEYS, np.full((len(KEYS), 8), -1, np.float32))
                ps.checkpoint(path)
            ps.restore(path)
            hps.prune_checkpoints(path, keep=2)


def one_value(table: Any) -> float:
    values = set(table.lookup(KEYS).ravel().tolist())
    assert len(values) == 1, f"rows of several moments: {sorted(values)[:5]}"
    return float(values.pop())


def test_the_newest_checkpoint_outlives_a_kill(tmp_path: Path) -> None:
    chance, path, data = random.Random(5), tmp_path / "saved", tmp_path / "data"
    with ServerProcess(data) as server, hps.connect(server.url) as ps:
        table = ps.create_table(hps.TableSpec("t", 8, hps.SGD(1.0), hps.Zeros()))
        table.assign(KEYS, np.zeros((len(KEYS), 8), np.float32))
        ps.checkpoint(path)
    for _ in range(rounds(4)):
        with ServerProcess(data) as server:
            with hps.connect(server.url) as ps:
                before = one_value(ps.table("t"))
            thread = threading.Thread(target=work, args=(server.url, path))
            thread.start()
            thread.join(chance.uniform(0.05, 1.5))
            server.process.kill()
            server.process.wait()
            thread.join()
        newest = hps.verify_checkpoint(path)
        with ServerProcess(data) as server, hps.connect(server.url) as ps:
            assert one_value(ps.table("t")) >= 0
            assert ps.restore(path) == newest.tables == {"t": len(KEYS)}
            after = one_value(ps.table("t"))
            assert after == int(after)
            assert before == int(before)
