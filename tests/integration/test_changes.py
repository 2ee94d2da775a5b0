"""Goal: who applies what `changes` tells has the table, bit for bit, over every transport, from any
cursor on; and a cursor that cannot be answered is refused, never answered wrong.

Method: a copy in dicts that is kept up by changes, beside random calls; pulls that are left in the
middle and gone on with by their cursor; servers that are killed.
"""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import REMOTE, connect, fresh_name
from support.server import ServerProcess

import hybridps as hps
from hybridps.verbs import pull

DIM = 4
ARRIVES_S = 60.0


class Copy:
    """Tables as the changes tell them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[int, bytes]] = {}
        self.cursor: str | None = None
        self.changes = 0

    def take(self, change: hps.Change) -> None:
        assert change.keys.dtype == change.removed.dtype == np.uint64
        assert change.rows.dtype == np.float32
        assert change.rows.shape[0] == len(change.keys)
        told = np.concatenate([change.keys, change.removed])
        assert len(np.unique(told)) == len(told), "a key is told twice in one change"
        if not len(told):
            self.tables[change.table] = {}
        rows = self.tables.setdefault(change.table, {})
        for key in change.removed.tolist():
            rows.pop(key, None)
        rows.update(
            (k, row.tobytes()) for k, row in zip(change.keys.tolist(), change.rows, strict=True)
        )
        self.cursor, self.changes = change.cursor, self.changes + 1

    def pull(self, ps: Any, *tables: str) -> None:
        for change in ps.changes(self.cursor, list(tables) or None):
            self.take(change)

    def check(self, ps: Any, name: str) -> None:
        """It is the table."""
        table, copied = ps.table(name), self.tables.get(name, {})
        there = np.concatenate([np.zeros(0, np.uint64), *table.keys()])
        assert sorted(copied) == sorted(there.tolist())
        rows = table.lookup(there)
        assert all(copied[k] == row.tobytes() for k, row in zip(there.tolist(), rows, strict=True))


def some(random: np.random.Generator, most: int, among: int = 5000) -> Any:
    keys = random.integers(0, among, 1 + random.integers(most), dtype=np.uint64)
    return keys * np.uint64(0x9E3779B97F4A7C15)


def change(table: Any, random: np.random.Generator) -> None:
    """One random call."""
    keys = np.unique(some(random, 400))
    what = random.integers(10)
    if what < 3:
        table.lookup_or_insert(keys)
    elif what < 6:
        table.apply_gradients(keys, random.standard_normal((len(keys), DIM), np.float32))
    elif what < 8:
        table.assign(keys, random.standard_normal((len(keys), DIM), np.float32))
    else:
        table.remove(keys)


def test_a_copy_is_the_table_whenever_it_is_looked_at(ps: Any, table: Any) -> None:
    random, copy = np.random.default_rng(5), Copy()
    for _ in range(6):
        for _ in range(8):
            change(table, random)
        copy.pull(ps, table.name)
        copy.check(ps, table.name)
    before = copy.changes
    copy.pull(ps, table.name)
    assert copy.changes == before, "nothing has changed"


def test_a_pull_that_was_left_is_gone_on_with(
    ps: Any, table: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind every change, with calls in between; in pages of some rows."""
    monkeypatch.setattr(pull, "PAGE_BYTES", 4096)
    random, copy = np.random.default_rng(6), Copy()
    for _ in range(10):
        change(table, random)
    for _ in range(80):
        changes = iter(ps.changes(copy.cursor, [table.name]))
        told = next(changes, None)
        changes.close()
        if told is not None:
            copy.take(told)
            change(table, random)
    copy.pull(ps, table.name)
    copy.check(ps, table.name)


def test_a_cursor_of_now_tells_what_comes_later(ps: Any, table: Any) -> None:
    table.assign([1, 2], np.ones((2, DIM), np.float32))
    since = ps.cursor()
    assert list(ps.changes(since, [table.name])) == []
    table.assign([2, 3], np.full((2, DIM), 2, np.float32))
    table.lookup_or_insert([4])
    table.remove([1])
    copy = Copy()
    copy.cursor = since
    gone = [int(key) for told in ps.changes(since, [table.name]) for key in told.removed]
    copy.pull(ps, table.name)
    assert (sorted(copy.tables[table.name]), gone) == ([2, 3, 4], [1])


def test_tables_that_come_and_go_are_told(ps: Any) -> None:
    names = [fresh_name(), fresh_name()]
    specs = [hps.TableSpec(name, DIM, hps.SGD(0.5), hps.Constant(1.0)) for name in names]
    first = ps.create_table(specs[0])
    first.lookup_or_insert([1, 2, 3])
    copy = Copy()
    copy.cursor = ps.cursor()
    ps.drop_table(names[0])
    ps.create_table(specs[1]).lookup_or_insert([7])
    told = [told for told in ps.changes(copy.cursor) if told.table in names]
    emptied = [t.table for t in told if not len(t.keys) and not len(t.removed)]
    assert sorted(emptied) == sorted(names)
    for one in told:
        copy.take(one)
    assert copy.tables == {names[0]: {}, names[1]: {7: np.ones(DIM, np.float32).tobytes()}}
    # Made anew between two looks: emptied once, before any row of the new one.
    ps.drop_table(names[1])
    ps.create_table(specs[1]).lookup_or_insert([8, 9])
    told = [told for told in ps.changes(copy.cursor) if told.table == names[1]]
    assert [len(t.keys) > 0 for t in told] == [False] + [True] * (len(told) - 1)
    for one in told:
        copy.take(one)
    copy.check(ps, names[1])


def test_who_follows_hears_of_what_comes(ps: Any, table: Any) -> None:
    table.lookup_or_insert([1])
    seen: list[int] = []
    # Another thread drives the iterator; a blocking client and a store take calls of both.
    is_told = threading.Event()

    def follow() -> None:
        for told in ps.changes(None, [table.name], follow=True, timeout=ARRIVES_S):
            seen.extend(told.keys.tolist())
            is_told.set()
            if 2 in seen:
                return

    thread = threading.Thread(target=follow)
    thread.start()
    assert is_told.wait(ARRIVES_S)
    table.lookup_or_insert([2])
    thread.join(ARRIVES_S)
    assert not thread.is_alive()
    assert seen == [1, 2]
    assert list(ps.changes(ps.cursor(), [table.name], follow=True, timeout=0.01)) == []


def test_what_changes_refuses(ps: Any, table: Any) -> None:
    def refused(error: type[Exception], match: str, *args: Any, **named: Any) -> None:
        with pytest.raises(error, match=match):
            list(ps.changes(*args, **named))

    table.lookup_or_insert([1])
    cursor = ps.cursor()
    refused(hps.BadInputError, "give the str", 5)
    refused(hps.BadInputError, "give a list", None, "item")
    refused(hps.BadInputError, "give a list", None, [])
    refused(hps.BadInputError, "timeout", None, None, timeout=-1)
    refused(hps.TableNotFoundError, "absent", None, ["absent"])
    refused(hps.CursorError, "no cursor", "")
    refused(hps.CursorError, "no cursor", cursor[:-5])
    refused(hps.CursorError, "no cursor", cursor.lower())
    own = next(iter(ps.changes(None, [table.name]))).cursor
    refused(hps.CursorError, "says nothing of table", own, [table.name, "other"])
    for altered, match in (
        (lambda p: forged(p, since=2**60), "ahead"),
        (lambda p: forged(p, store="0" * 32), "is of store"),
        (lambda p: forged(p, servers=5), "of 5 servers"),
    ):
        refused(hps.CursorError, match, altered(own))


def forged(
    cursor: str, since: int | None = None, store: str | None = None, servers: int = 0
) -> str:
    """A cursor that says something else."""
    position = pull.Position.from_text(cursor)
    shards = [
        pull.Shard(
            store or shard.store,
            {n: pull.Progress(t.id, since or t.since) for n, t in shard.tables.items()},
        )
        for shard in position.shards
    ]
    shards = (shards * servers)[:servers] or shards
    return pull.Position(position.names, tuple(shards)).to_text()


def test_a_cursor_is_of_its_store_and_for_any_client(tmp_path: Path) -> None:
    spec = hps.TableSpec("t", DIM, hps.SGD(0.5))
    with ServerProcess(tmp_path / "a") as a, ServerProcess(tmp_path / "b") as b:
        with hps.connect(a.url) as ps, hps.connect(b.url) as other:
            for client in (ps, other):
                client.create_table(spec).lookup_or_insert([1, 2])
            cursor = ps.cursor()
            ps.table("t").lookup_or_insert([3])
            with pytest.raises(hps.CursorError, match="is of store"):
                list(other.changes(cursor))
        for kind in REMOTE:
            if kind.startswith("tcp"):
                with connect(kind, a.url) as again:
                    (told,) = again.changes(cursor)
                    assert told.keys.tolist() == [3]


def test_after_a_crash_a_cursor_is_answered_right_or_refused(tmp_path: Path) -> None:
    """One that was flushed is answered; one that may speak of what is lost is not."""
    spec = hps.TableSpec("t", DIM, hps.SGD(0.5))
    keys, copy, ahead = np.arange(3000), Copy(), Copy()
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        table = ps.create_table(spec)
        table.assign(keys, np.ones((3000, DIM), np.float32))
        copy.pull(ps)
        ps.flush()
        table.remove(keys[:100])
        table.assign(keys[100:200], np.zeros((100, DIM), np.float32))
        table.lookup_or_insert(keys + 10_000)
        ahead.pull(ps)
        server.process.kill()
        server.process.wait()
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        copy.pull(ps)
        copy.check(ps, "t")
        with pytest.raises(hps.CursorError, match="begin with since=None"):
            ahead.pull(ps)
        ahead = Copy()
        ahead.pull(ps)
        assert ahead.tables == copy.tables


def test_many_write_while_one_follows(tmp_path: Path) -> None:
    """Rows leave DRAM meanwhile, tables are made anew, and at the end both are the same."""
    spec = hps.TableSpec("t", DIM, hps.Adagrad(0.5), dram="1MiB")
    with ServerProcess(tmp_path / "a", dram="8MiB") as server, hps.connect(server.url) as ps:
        ps.create_table(spec)
        is_over = threading.Event()

        def write(seed: int) -> None:
            with hps.connect(server.url) as own:
                table, random = own.table("t"), np.random.default_rng(seed)
                for _ in range(60):
                    change(table, random)

        writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
        copy = Copy()
        for writer in writers:
            writer.start()
        waiting = threading.Thread(target=lambda: ([w.join() for w in writers], is_over.set()))
        waiting.start()
        while not is_over.is_set():
            copy.pull(ps)
        waiting.join()
        copy.pull(ps)
        copy.check(ps, "t")
        ps.drop_table("t")
        ps.create_table(spec).lookup_or_insert([5])
        copy.pull(ps)
        copy.check(ps, "t")
