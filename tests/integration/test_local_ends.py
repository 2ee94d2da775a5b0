"""Goal: whatever way a program ends, a crash apart, its `local:` store has every row.

Method: programs that push and end without `close`; the store is opened afterwards. Durability is
"none", the default, where rows are in memory until then.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.server import environment

import hybridps as hps

START = """
import asyncio, gc, multiprocessing, os, signal, sys, threading, time
import numpy as np, hybridps as hps
# As in a terminal: a job in the background of a shell is started with the signal ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
ps = hps.connect("local:{path}", dram="16MiB", nvme="64MiB")
table = ps.create_table(hps.TableSpec("t", 4, hps.SGD(1.0), hps.Zeros()))
def push(ps):
    ps.table("t").apply_gradients(np.arange(500), np.full((500, 4), -7, np.float32))
push(ps)
def end(number):
    os.kill(os.getpid(), number)
    time.sleep(30)
"""
TWO_LOOPS = """
ps.close()
async def main():
    aps = await hps.aio.connect("local:{path}", dram="16MiB", nvme="64MiB")
    await aps.table("t").apply_gradients(np.arange(500), np.zeros((500, 4), np.float32))
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(30)
"""
# How it ends -> the exit code of the process.
ENDS = {
    "": 0,
    "sys.exit(3)": 3,
    "raise RuntimeError": 1,
    "gc.disable(); box = [ps, table]; box.append(box); del ps, table, box": 0,
    "sys.kept = ps": 0,
    "threading.Thread(target=lambda p: time.sleep(60), args=(ps,), daemon=True).start()": 0,
    "ps.prefetch({{'t': np.arange(500)}})": 0,
    "end(signal.SIGTERM)": -15,
    "end(signal.SIGHUP)": -1,
    "end(signal.SIGINT)": -2,
    # In the midst of calls of other threads.
    "threading.Thread(target=lambda: [table.lookup(range(500)) for _ in iter(int, 1)],"
    " daemon=True).start(); time.sleep(0.2); end(signal.SIGTERM)": -15,
    # A child of a fork ends by the signal too, and leaves the store of its parent alone.
    "p = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,));"
    " p.start(); time.sleep(0.2); p.terminate(); p.join(); sys.exit(p.exitcode + 20)": 5,
    # A handler of the program's own stays.
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(9)); end(signal.SIGTERM)": 9,
    TWO_LOOPS + "asyncio.run(main())": -15,
    TWO_LOOPS + "import uvloop; uvloop.run(main())": -15,
}


@pytest.mark.parametrize("end", ENDS, ids=range(len(ENDS)))
def test_nothing_is_lost(tmp_path: Path, end: str) -> None:
    program = (START + end).format(path=tmp_path / "s")
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == ENDS[end], done.stderr
    with hps.connect(f"local:{tmp_path / 's'}", dram="16MiB", nvme="64MiB") as ps:
        rows = ps.table("t").lookup(np.arange(500))
    np.testing.assert_array_equal(rows, np.full((500, 4), 7, np.float32))


def test_a_handler_set_before_stays(tmp_path: Path) -> None:
    """A library takes over no signal that the program, or `nohup`, has decided about."""
    program = f"""
import os, signal, hybridps as hps
signal.signal(signal.SIGTERM, signal.SIG_IGN)
own = lambda *_: None
signal.signal(signal.SIGHUP, own)
with hps.connect("local:{tmp_path / "s"}", dram="8MiB", nvme="64MiB"):
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) is own
    os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "alive\n"
