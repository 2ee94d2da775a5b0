"""Goal: steps and sessions: a trainer that restarts may replay, and takes over from its old self.

Method: against an engine that keeps steps, over every transport that has more than one client.
"""

import warnings
from typing import Any

import numpy as np
import pytest
from support.clients import LOCAL, Servers, connect, fresh_name

import hybridps as hps

ONES = np.ones((2, 2), np.float32)


@pytest.fixture
def url(kind: str, request: pytest.FixtureRequest) -> str:
    """Servers; a store in this process has one client only."""
    if kind in LOCAL:
        pytest.skip("one process, one client")
    servers: Servers = request.getfixturevalue("servers")
    return servers.url(kind)


def spec() -> hps.TableSpec:
    return hps.TableSpec(fresh_name(), 2, hps.SGD(1.0), hps.Zeros())


def test_steps_grow_within_a_session(ps: Any) -> None:
    table = ps.create_table(spec())
    table.apply_gradients([1, 2], ONES, step=5)
    for step in (5, 4, -1):
        with pytest.raises(hps.BadInputError, match="step"):
            table.apply_gradients([1, 2], ONES, step=step)
    table.apply_gradients([1, 2], ONES, step=6)
    table.apply_gradients([1, 2], ONES)
    np.testing.assert_array_equal(table.lookup([1, 2]), -3 * ONES)


def test_a_restarted_trainer_replays(kind: str, url: str) -> None:
    trainer, made = fresh_name(), spec()
    with connect(kind, url, client_id=trainer) as ps:
        table = ps.create_table(made)
        for step in range(1, 6):
            table.apply_gradients([step, 100], ONES, step=step)
    with connect(kind, url, client_id=trainer) as ps:
        table = ps.table(made.name)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3, 8):
                table.apply_gradients([step, 100], ONES, step=step)
        assert len(caught) == 1
        assert "duplicate_pushes" in str(caught[0].message)
        np.testing.assert_array_equal(table.lookup(range(1, 8)), np.full((7, 2), -1, np.float32))
        np.testing.assert_array_equal(table.lookup(100), [-7, -7])
        assert table.stats()["duplicate_pushes"] >= 3


def test_a_new_session_takes_over(kind: str, url: str) -> None:
    trainer, made = fresh_name(), spec()
    with connect(kind, url, client_id=trainer) as old:
        table = old.create_table(made)
        table.apply_gradients([1, 2], ONES)
        with connect(kind, url, client_id=trainer) as new:
            with pytest.raises(hps.UnavailableError):
                table.apply_gradients([1, 2], ONES)
            new.table(made.name).apply_gradients([1, 2], ONES)
            np.testing.assert_array_equal(new.table(made.name).lookup([1, 2]), -2 * ONES)


def test_a_session_that_was_taken_over_does_nothing_any_more(kind: str, url: str) -> None:
    trainer, made = fresh_name(), spec()
    with connect(kind, url, client_id=trainer) as old:
        table = old.create_table(made)
        table.apply_gradients([1, 2], ONES)
        with connect(kind, url, client_id=trainer) as new, connect(kind, url) as other:
            before = new.table(made.name).stats()["keys"]
            calls = [
                lambda: table.apply_gradients([1, 2], ONES),
                lambda: table.assign([1, 2], ONES),
                lambda: table.remove([1]),
                lambda: table.lookup_or_insert([77]),
                lambda: table.lookup([1]),
                lambda: table.set_learning_rate(0.5),
                lambda: table.alter(learning_rate=0.5),
                table.stats,
                table.size,
                old.tables,
                old.stats,
                old.flush,
                lambda: old.prefetch({made.name: [1]}),
                lambda: old.create_table(spec()),
                lambda: old.drop_table(made.name),
            ]
            for call in calls:
                with pytest.raises(hps.UnavailableError, match=f"{trainer}.*newer session"):
                    call()
            # Nobody else is disturbed, and nothing was changed.
            for client in (new, other):
                np.testing.assert_array_equal(client.table(made.name).lookup([1, 2]), -ONES)
            assert new.table(made.name).stats()["keys"] == before
