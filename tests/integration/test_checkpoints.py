"""Goal: `checkpoint` and `restore` do the same over every transport, for one server and several;
handles, sessions and training outlive them; what is refused changes nothing.

Method: the tables of a client before and after, all keys with values, slots (by how the next
gradient moves them) and statistics; a trainer whose steps are made once more after a restore.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import fresh_name, needs_server, urls_of
from support.server import ServerProcess

import hybridps as hps

KEYS = np.arange(500, dtype=np.uint64)


def train(table: Any, step: int) -> None:
    keys = KEYS[step : step + 300]
    table.lookup_or_insert(keys)
    table.apply_gradients(keys, np.full((300, 4), 0.25 + step, np.float32))


def contents(table: Any) -> tuple[list[Any], ...]:
    rows, found = table.lookup(KEYS, return_found=True)
    told = table.statistics(KEYS)
    return rows.tolist(), found.tolist(), told.frequency.tolist(), told.last_seen.tolist()


@pytest.fixture
def adagrad(ps: Any) -> Any:
    """A table whose slots show in the next push."""
    return ps.create_table(hps.TableSpec(fresh_name(), 4, hps.Adagrad(0.5, 0.1)))


def test_a_restored_table_is_what_was_saved(ps: Any, adagrad: Any, tmp_path: Path) -> None:
    name = adagrad.spec.name
    train(adagrad, 0)
    before = contents(adagrad)
    seen: list[tuple[int, int]] = []
    made = ps.checkpoint(
        tmp_path / "saved", step=7, extra=[1, None], progress=lambda *x: seen.append(x)
    )
    assert (made.kind, made.step, made.extra, made.tables[name]) == ("full", 7, [1, None], 300)
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    train(adagrad, 50)
    adagrad.remove(KEYS[:20])
    after = contents(adagrad)
    delta = ps.checkpoint(tmp_path / "saved", step=8)
    assert (delta.kind, delta.parent) == ("delta", made.id)
    for step, expected in ((7, before), (8, after), (7, before)):
        assert ps.restore(tmp_path / "saved", step=step, tables=[name])[name] == sum(expected[1])
        assert contents(adagrad) == expected
        assert contents(ps.table(name)) == expected
    train(adagrad, 50)
    adagrad.remove(KEYS[:20])
    assert contents(adagrad)[:3] == after[:3]


def test_what_does_not_fit_is_refused(ps: Any, adagrad: Any, tmp_path: Path) -> None:
    name = adagrad.spec.name
    train(adagrad, 0)
    made = ps.checkpoint(tmp_path / "saved")
    ps.drop_table(name)
    table = ps.create_table(hps.TableSpec(name, 5, hps.Adagrad(0.5, 0.2)))
    table.assign([1], np.ones((1, 5), np.float32))
    with pytest.raises(hps.TableMismatchError, match=r"dim is 5.*optimizer"):
        ps.restore(tmp_path / "saved", tables=[name])
    assert table.lookup([1]).tolist() == [[1] * 5]
    with pytest.raises(hps.TableNotFoundError, match="nobody"):
        ps.restore(tmp_path / "saved", tables=[name, "nobody"])
    with pytest.raises(hps.BadInputError, match="step 3"):
        ps.restore(tmp_path / "saved", step=3)
    with pytest.raises(hps.BadInputError, match="elsewhere"):
        ps.restore(tmp_path / "saved", id="elsewhere")
    with pytest.raises(hps.BadInputError, match="no whole checkpoint"):
        ps.restore(tmp_path / "empty")
    with pytest.raises(hps.BadInputError, match="extra"):
        ps.checkpoint(tmp_path / "saved", extra=object())
    with pytest.raises(hps.BadInputError, match="step"):
        ps.checkpoint(tmp_path / "saved", step=1.5)
    with pytest.raises(hps.BadInputError, match="tables"):
        ps.restore(tmp_path / "saved", tables=name)
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(hps.ConfigError, match="file"):
        ps.checkpoint(tmp_path / "file")
    (file, *_) = sorted((tmp_path / "saved" / made.id).glob("*.rows"))
    file.write_bytes(file.read_bytes()[:-1])
    ps.drop_table(name)
    with pytest.raises(hps.CorruptionError, match=file.name):
        ps.restore(tmp_path / "saved", tables=[name])
    assert name not in ps.tables()


def test_values_alone_after_a_change_of_optimizer(ps: Any, adagrad: Any, tmp_path: Path) -> None:
    name = adagrad.spec.name
    train(adagrad, 0)
    rows = adagrad.lookup(KEYS)
    ps.checkpoint(tmp_path / "saved")
    ps.drop_table(name)
    table = ps.create_table(hps.TableSpec(name, 4, hps.Adam(0.125)))
    ps.restore(tmp_path / "saved", tables=[name], slots=False)
    assert table.lookup(KEYS).tolist() == rows.tolist()
    assert table.spec.optimizer == hps.Adam(0.125)
    # Fresh slots: the first step of Adam is the learning rate.
    table.apply_gradients(KEYS[:300], np.ones((300, 4), np.float32))
    moved = rows[:300] - table.lookup(KEYS[:300])
    assert np.allclose(moved, 0.125, rtol=1e-3)


def test_training_goes_on_meanwhile(kind: str, ps: Any, adagrad: Any, tmp_path: Path) -> None:
    """Each checkpoint is the table after so many pushes: all keys were pushed alike."""
    name, stop, failures = adagrad.spec.name, threading.Event(), []

    def work() -> None:
        try:
            while not stop.is_set():
                adagrad.apply_gradients(KEYS, np.ones((500, 4), np.float32))
        except hps.HybridPSError as error:
            failures.append(error)

    adagrad.assign(KEYS, np.zeros((500, 4), np.float32))
    thread = threading.Thread(target=work)
    thread.start()
    try:
        for step in range(3):
            ps.checkpoint(tmp_path / "saved", step=step)
    finally:
        stop.set()
        thread.join()
    assert not failures
    for step in range(3):
        ps.restore(tmp_path / "saved", step=step, tables=[name])
        rows = adagrad.lookup(KEYS)
        shards = {tuple(row) for row in rows.tolist()}
        # One moment a server.
        assert len(shards) <= 1 + kind.startswith("shards"), "rows are of different pushes"


@needs_server
def test_steps_are_made_once_after_a_restore_to_other_servers(tmp_path: Path) -> None:
    def servers(count: int, tag: str) -> list[ServerProcess]:
        return [
            ServerProcess(tmp_path / f"{tag}{n}", "--shard", f"{n}/{count}") for n in range(count)
        ]

    def push(table: Any, step: int) -> None:
        table.apply_gradients(KEYS, np.full((500, 4), step, np.float32), step=step)

    first = servers(2, "a")
    spec = hps.TableSpec("t", 4, hps.Adagrad(0.5, 0.1))
    try:
        with hps.connect(urls_of(first), client_id="trainer") as ps:
            table = ps.create_table(spec)
            for step in range(1, 6):
                push(table, step)
                if step == 3:
                    ps.checkpoint(tmp_path / "saved", step=3)
            expected = table.lookup(KEYS).tolist()
    finally:
        for server in first:
            server.close()
    for count in (1, 3):
        started = servers(count, f"b{count}-")
        try:
            with hps.connect(urls_of(started), client_id="trainer") as ps:
                ps.restore(tmp_path / "saved")
                table = ps.table("t")
                with pytest.warns(UserWarning, match="step"):
                    push(table, 1)
                for step in range(2, 6):
                    push(table, step)
                assert table.lookup(KEYS).tolist() == expected
        finally:
            for server in started:
                server.close()
