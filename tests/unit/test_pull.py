"""Goal: changes of several servers become one stream: a table that is dropped and made anew is
emptied once, before any row of the new one, in whatever order the servers are seen to change.

Method: servers of dicts that answer the two calls, tables that go and come between any two calls,
and a copy that is kept up by what the pull tells.
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps.placement import CELLS
from hybridps.verbs.catalog import Catalog
from hybridps.verbs.changes import Changes, Entry, Now, NowOf, Page
from hybridps.verbs.pull import Change, Pull

NONE = np.zeros(0, np.uint64)
DIM = 1
PAGES = 4
MOMENTS = list(itertools.combinations_with_replacement(range(14), 3))


@dataclass
class Server:
    """A store: keys with the sequence of their last change; a page is a quarter of the cells."""

    number: int
    sequence: int = 10
    ids: Any = field(default_factory=lambda: itertools.count(1))
    tables: dict[str, tuple[int, dict[int, tuple[int, float]]]] = field(default_factory=dict)

    def make(self, name: str) -> None:
        self.sequence += 1
        self.tables[name] = (next(self.ids), {})

    def drop(self, name: str) -> None:
        self.sequence += 1
        del self.tables[name]

    def put(self, name: str, key: int, value: float) -> None:
        self.sequence += 1
        self.tables[name][1][key] = (self.sequence, value)

    def answer(self, call: Any) -> Any:
        if isinstance(call, NowOf):
            known = {name: Entry(table[0], DIM) for name, table in self.tables.items()}
            return Now(f"{self.number:032x}", self.sequence, known)
        assert isinstance(call, Changes)
        for table, rows in self.tables.values():
            if table == call.table:
                return self.page(rows, call)
        raise hps.TableNotFoundError("gone")

    def page(self, rows: dict[int, tuple[int, float]], call: Changes) -> Page:
        first, part = self.number * CELLS // 2, CELLS // 2 // PAGES
        assert call.end == first + CELLS // 2, "no other server's cells are asked for"
        number = (call.start - first) // part
        told = {
            key: value
            for key, (sequence, value) in rows.items()
            if key % PAGES == number and (call.since is None or sequence > call.since)
        }
        values = np.array(list(told.values()), np.float32).reshape(-1, DIM)
        return Page(NONE, np.array(list(told), np.uint64), values, first + (number + 1) * part)


class Fleet:
    """Two servers, and what happens to them before each call that is answered."""

    def __init__(self) -> None:
        self.servers = [Server(0), Server(1)]
        self.script: dict[int, Any] = {}
        self.calls = 0
        self.copy: dict[str, dict[int, float]] = {}
        self.told: list[Change] = []

    def run(self, pull: Pull) -> None:
        """All that had changed, applied to the copy."""
        while not pull.is_complete:
            steps = pull.step()
            try:
                asked = next(steps)
                while True:
                    asked = self.perform(steps, asked)
            except StopIteration as stop:
                if stop.value is not None:
                    self.take(stop.value)

    def perform(self, steps: Any, asked: Any) -> Any:
        replies, errors = [], []
        for shard, call in asked:
            for moment in sorted(m for m in self.script if m <= self.calls):
                self.script.pop(moment)()
            self.calls += 1
            try:
                replies.append(self.servers[shard].answer(call))
            except hps.TableNotFoundError as error:
                errors.append(error)
        return steps.throw(errors[0]) if errors else steps.send(replies)

    def take(self, change: Change) -> None:
        self.told.append(change)
        if not len(change.keys) and not len(change.removed):
            self.copy[change.table] = {}
        rows = self.copy.setdefault(change.table, {})
        rows.update(zip(change.keys.tolist(), change.rows[:, 0].tolist(), strict=True))


def filled(fleet: Fleet, generation: float) -> None:
    for server in fleet.servers:
        for key in range(3):
            server.put("t", 2 * key + server.number, generation)


@pytest.mark.parametrize("moments", MOMENTS)
def test_a_table_made_anew_is_emptied_before_its_rows(moments: tuple[int, int, int]) -> None:
    """Dropped on one server, then on the other, made on one, then on the other, at any calls."""
    fleet = Fleet()
    for server in fleet.servers:
        server.make("t")
    filled(fleet, 1.0)
    catalog = Catalog(2)
    first, second = fleet.servers

    def drop() -> None:
        first.drop("t")
        second.drop("t")

    def make() -> None:
        first.make("t")
        first.put("t", 100, 2.0)

    def make_rest() -> None:
        second.make("t")
        filled(fleet, 2.0)

    for moment, what in zip(moments, (drop, make, make_rest), strict=True):
        before = fleet.script.get(moment, lambda: None)
        fleet.script[moment] = lambda before=before, what=what: (before(), what())
    pull = Pull(catalog, None, None)
    fleet.run(pull)
    while fleet.script or fleet.calls <= max(moments) + 1:
        fleet.calls += 1
        pull = Pull(catalog, pull.position.to_text(), None)
        fleet.run(pull)
    expected = {k: v for server in fleet.servers for k, (_, v) in server.tables["t"][1].items()}
    assert fleet.copy["t"] == expected
    of_new = [n for n, change in enumerate(fleet.told) if 2.0 in change.rows]
    emptied = [n for n, change in enumerate(fleet.told) if not len(change.keys)]
    # Once where it goes, once where it comes; once where both were seen together.
    at_once = moments[0] == moments[2]
    assert len(emptied) <= (1 if at_once else 2), "emptied again and again"
    assert not any(of_new[0] < n for n in emptied), "emptied behind a row of the new table"


def test_a_cursor_moves_on_past_what_told_nothing() -> None:
    """The last change of a pull has the cursor of its end: what is asked next costs nothing."""
    fleet = Fleet()
    for server in fleet.servers:
        server.make("t")
        server.make("idle")
    fleet.servers[0].put("t", 0, 1.0)
    fleet.run(Pull(Catalog(2), None, None))
    (change,) = fleet.told
    calls = fleet.calls
    fleet.run(Pull(Catalog(2), change.cursor, None))
    assert fleet.calls - calls == 2, "a look at each server, and no page"


def test_what_changes_while_rows_are_copied_is_told() -> None:
    fleet = Fleet()
    for server in fleet.servers:
        server.make("t")
    filled(fleet, 1.0)
    # Key 0 lies in the first page, which is through by then.
    fleet.script[6] = lambda: fleet.servers[0].put("t", 0, 5.0)
    fleet.run(Pull(Catalog(2), None, ["t"]))
    assert fleet.copy["t"][0] == 5.0


def test_a_server_that_answers_other_rows_is_not_believed() -> None:
    fleet = Fleet()
    for server in fleet.servers:
        server.make("t")
    filled(fleet, 1.0)
    wrong = Page(NONE, np.array([1], np.uint64), np.zeros((1, DIM + 1), np.float32), CELLS)
    fleet.servers[0].page = lambda *_: wrong
    with pytest.raises(hps.HybridPSError, match="rows are not of 1"):
        fleet.run(Pull(Catalog(2), None, ["t"]))
