"""Goal: expiry is the same over every transport, live, and outlives a restart; whoever follows the
changes learns of it; servers agree on what is due however many there are.

Method: as `test_verbs_rows`; a dict of steps or moments beside the table. Moments are given, so
nothing waits for a clock but what runs in the background, which is waited for.
"""

import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import connect, urls_of
from support.server import ServerProcess

import hybridps as hps

MONTH = 30 * 86_400
DIM = 8


def spec(expiry: Any, name: str = "fading") -> hps.TableSpec:
    return hps.TableSpec(name, DIM, hps.SGD(1.0), hps.Zeros(), expiry=expiry)


def push(table: Any, keys: Any, step: int | None = None) -> None:
    keys = np.asarray(keys)
    table.apply_gradients(keys, -np.ones((len(keys), DIM), np.float32), step=step)


def all_keys(table: Any) -> list[int]:
    return sorted(int(key) for keys in table.keys() for key in keys)  # noqa: SIM118


def test_rows_go_when_their_age_has_come(ps: Any) -> None:
    table = ps.create_table(spec(hps.After("30d")))
    push(table, np.arange(100))
    table.lookup_or_insert(np.arange(100, 200))
    table.assign(np.arange(200, 300), np.ones((100, DIM), np.float32))
    now = time.time()
    assert table.expire() == 0
    assert table.expire(now=now + MONTH - 3600) == 0
    assert table.inspect([0])[0].last_seen >= int(now) - 60, "a push is seen, too"
    assert table.expire(now=now + MONTH + 3600) == 300
    assert all_keys(table) == []
    assert table.stats()["expired_rows"] == 300
    push(table, [5])
    np.testing.assert_array_equal(table.lookup([5, 6]), [[1] * DIM, [0] * DIM])
    ps.drop_table("fading")


@pytest.mark.parametrize("are_given", [True, False])
def test_rows_go_so_many_steps_after_their_push(ps: Any, *, are_given: bool) -> None:
    table = ps.create_table(spec(hps.AfterSteps(20)))
    random, seen = np.random.default_rng(7), {}
    for step in range(1, 60):
        # Without steps a server counts the pushes that name keys of its own: all of these do.
        keys = random.choice(600, 40, replace=False)
        push(table, keys, step if are_given else None)
        seen |= dict.fromkeys(keys.tolist(), step)
        seen = {key: last for key, last in seen.items() if step - last < 20}
        # The background may have been faster.
        assert table.expire() <= 40
        assert all_keys(table) == sorted(seen), step
    ps.drop_table("fading")


def test_the_setting_is_live_and_stays(ps: Any) -> None:
    table = ps.create_table(spec(None))
    assert table.spec.expiry is None
    table.assign(np.arange(10), np.full((10, DIM), 1e-4, np.float32))
    assert table.expire() == 0
    for expiry in (hps.After("2w"), hps.AfterSteps(5), None, hps.BelowNorm(1.0)):
        table.alter(expiry=expiry)
        table.alter(learning_rate=1.0)
        assert table.spec.expiry == expiry
        with pytest.warns(UserWarning, match="expiry is"):
            again = ps.create_table(spec(hps.AfterSteps(9)))
        assert again.name == "fading"
    table.assign([3], np.ones((1, DIM), np.float32))
    table.expire()
    deadline = time.monotonic() + 60
    while all_keys(table) != [3]:
        assert time.monotonic() < deadline
    with pytest.raises(hps.BadInputError, match="'fading': expiry is 5"):
        table.alter(expiry=5)
    with pytest.raises(hps.BadInputError, match="'fading': now is 'soon'"):
        table.expire(now="soon")
    with pytest.raises(hps.BadInputError, match="now is -1"):
        table.expire(now=-1)
    ps.drop_table("fading")


def test_what_expired_is_told_as_removed(ps: Any) -> None:
    table = ps.create_table(spec(hps.After("1d")))
    push(table, np.arange(50))
    cursor = ps.cursor()
    push(table, [7])
    assert table.expire(now=time.time() + 2 * 86_400) == 50
    push(table, [9])
    removed, rows = set(), {}
    for change in ps.changes(since=cursor, tables=["fading"]):
        removed |= set(change.removed.tolist())
        rows |= dict(zip(change.keys.tolist(), change.rows[:, 0].tolist(), strict=True))
    assert removed | {9} == set(range(50))
    assert rows == {9: 1.0}
    ps.drop_table("fading")


def test_the_background_does_it_alone_and_a_restart_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "alone"
    with connect("local", f"local:{path}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.create_table(spec(hps.AfterSteps(3)))
        for step in range(10):
            push(table, [step], step)
        deadline = time.monotonic() + 120
        while all_keys(table) != [7, 8, 9]:
            assert time.monotonic() < deadline, "nothing expires"
            time.sleep(0.05)
    with connect("local", f"local:{path}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.table("fading")
        assert table.spec.expiry == hps.AfterSteps(3)
        assert all_keys(table) == [7, 8, 9]
        push(table, [5], 11)
        table.expire()
        assert all_keys(table) == [5, 9]


def test_any_number_of_servers_agrees(tmp_path: Path) -> None:
    """Small batches: most pushes name keys of some servers alone, and all hear of the step."""
    told = []
    for shards in (1, 3):
        with contextlib.ExitStack() as held:
            servers = [
                held.enter_context(
                    ServerProcess(tmp_path / f"{n} of {shards}", "--shard", f"{n}/{shards}")
                )
                for n in range(shards)
            ]
            table = held.enter_context(hps.connect(urls_of(servers))).create_table(
                spec(hps.AfterSteps(15))
            )
            random, left = np.random.default_rng(3), []
            for step in range(1, 60):
                push(table, random.choice(200, 3, replace=False), step)
                if step % 10 == 0:
                    table.expire()
                    left.append(all_keys(table))
            told.append(left)
    assert told[0] == told[1]
    assert len(told[0][-1]) < 50


def test_what_expired_stays_away_after_a_kill(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "killed") as server:
        with hps.connect(server.url) as ps:
            table = ps.create_table(spec(hps.After("1d")))
            push(table, np.arange(2000))
            assert table.expire(now=time.time() + 2 * 86_400) == 2000
            push(table, np.arange(1990, 2010))
        server.kill()
    with ServerProcess(tmp_path / "killed") as server, hps.connect(server.url) as ps:
        table = ps.table("fading")
        assert all_keys(table) == list(range(1990, 2010))
        assert (table.lookup(np.arange(1990, 2010)) == 1).all()
