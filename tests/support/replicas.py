"""Replica processes, and how a test knows that one has caught up."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from support.server import ServerProcess

ARRIVES_S = 120.0
# A program that holds back the pages of a copy until a file is there: `held` below.
_HELD = """
import os
from hybridps.replica.feed import Feed

page = Feed._page

def held(self, asked):
    if not os.path.exists({gate!r}):
        self.is_idle = True
        return
    yield from page(self, asked)

Feed._page = held
"""


_OFTEN = """
import time
from hybridps.replica import copies, follower

apply = copies.Copies.apply

def slowly(self, news):
    time.sleep(0.05)
    return apply(self, news)

copies.Copies.apply = slowly
follower.SAVE_S = 0.01
"""


def replica(data: Path, url: str, *arguments: str, **settings: Any) -> ServerProcess:
    """A replica of the servers of a URL."""
    return ServerProcess(data, "--follow", url, *arguments, **settings)


def held(folder: Path) -> tuple[dict[str, str], Path]:
    """Environment of a replica that takes no page before the file is there; the file."""
    gate = folder / "gate"
    return _altered(folder, _HELD.format(gate=str(gate))), gate


def saving_often(folder: Path) -> dict[str, str]:
    """Environment of a replica that writes its position all the time, and is slow to apply."""
    return _altered(folder, _OFTEN)


def _altered(folder: Path, program: str) -> dict[str, str]:
    """Environment of a Python that runs a program before all else."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(program, encoding="utf-8")
    return {"PYTHONPATH": str(folder)}


def wait_for(what: Callable[[], bool], told: str) -> None:
    """Returns once it is so."""
    end_s = time.monotonic() + ARRIVES_S
    while not what():
        assert time.monotonic() < end_s, f"not in {ARRIVES_S} s: {told}"
        time.sleep(0.02)


def catch_up(ps: Any) -> None:
    """Waits until the replica has all that there was when this was called."""
    now = time.time()
    wait_for(lambda: time.time() - ps.staleness() > now, "the replica has caught up")


def contents(ps: Any, name: str) -> dict[int, bytes]:
    """All rows of a table by key."""
    table = ps.table(name)
    keys = np.concatenate([np.zeros(0, np.uint64), *table.keys()])
    rows = table.lookup(keys)
    return {key: row.tobytes() for key, row in zip(keys.tolist(), rows, strict=True)}


def assert_follows(primary: Any, copy: Any) -> None:
    """The same tables, specs and bits on both, once the replica has caught up."""
    catch_up(copy)
    assert copy.tables() == primary.tables()
    for name in primary.tables():
        assert copy.table(name).spec == primary.table(name).spec
        mine, theirs = contents(copy, name), contents(primary, name)
        assert mine.keys() == theirs.keys(), f"{name}: {len(mine)} keys of {len(theirs)}"
        assert mine == theirs, name
