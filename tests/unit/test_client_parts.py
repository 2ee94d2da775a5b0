"""Goal: a push of any size is applied whole, once and in order, in as many parts as it needs, or
not at all; no arrays are lost or doubled at the cuts. Method: cuts beside NumPy, with random shapes
and limits; whole conversations without sockets, cut off and given up at every part."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.lined import DIM, Near, Store

import hybridps as hps
from hybridps import verbs
from hybridps.client.parts import parts_of
from hybridps.verbs.calls import ServerInfo

FRAME, KEYS = 16 << 10, 300


def info(frame: int = FRAME, keys: int = KEYS) -> ServerInfo:
    return ServerInfo("test", 0, 1, frame, keys)


def gradients(table: int, count: int, dim: int = DIM) -> tuple[int, Any, Any]:
    keys = np.arange(count, dtype=np.uint64) + 1000 * table
    return table, keys, np.random.default_rng(table).random((count, dim), np.float32)


@settings(max_examples=200, deadline=None)
@given(
    tables=st.lists(st.tuples(st.integers(0, 900), st.integers(1, 64)), min_size=1, max_size=5),
    frame=st.integers(2500, 100_000),
    keys=st.integers(5, 1000),
)
def test_parts_together_are_the_call(tables: Any, frame: int, keys: int) -> None:
    whole = [gradients(n, *shape) for n, shape in enumerate(tables)]
    parts = parts_of(info(frame, keys), verbs.ApplyGradients(whole, 7), "here")
    if len(parts) > 1:
        announcement, *parts = parts
        assert announcement.is_announcement
        assert all(len(table[1]) == 0 for table in announcement.call.tables)
        total = sum(k.nbytes + g.nbytes for _, k, g in whole)
        assert {part.total for part in (announcement, *parts)} == {total}
    joined: dict[int, list[Any]] = {table: [] for table, _, _ in whole}
    for part in parts:
        assert part.call.step == 7
        assert sum(len(k) for _, k, _ in part.call.tables) <= keys
        assert (
            len(part.call.tables) == 1
            or sum(k.nbytes + g.nbytes for _, k, g in part.call.tables) <= frame
        )
        for table, part_keys, part_gradients in part.call.tables:
            joined[table].append((part_keys, part_gradients))
    for table, table_keys, table_gradients in whole:
        assert joined[table], "each table is named, also without rows"
        np.testing.assert_array_equal(np.concatenate([k for k, _ in joined[table]]), table_keys)
        np.testing.assert_array_equal(
            np.concatenate([g for _, g in joined[table]]), table_gradients
        )


def test_a_read_that_is_too_large_is_refused() -> None:
    call = verbs.Lookup([(1, np.arange(KEYS + 1, dtype=np.uint64))], False)
    with pytest.raises(
        hps.BadInputError, match=r"301 keys of 1 tables.*takes 300 keys.*keys_limit"
    ):
        parts_of(info(), call, "hps://a:1")


@pytest.fixture
def near(tmp_path: Path) -> Iterator[Near]:
    store = Store(tmp_path / "data", frame_limit=FRAME, keys_limit=KEYS)
    near = Near(store)
    near.submit(None)
    near.settle()
    yield near
    store.engine.close()


MANY = np.arange(1, 2001, dtype=np.uint64)
ONES = np.ones((2000, DIM), np.float32)


def values(near: Near) -> Any:
    ((rows, _),) = near.store.engine.lookup([(near.store.table, MANY)], False)
    return rows


def large(near: Near) -> Any:
    return near.submit(verbs.ApplyGradients([(near.store.table, MANY, ONES)], None), 30.0)


def test_large_pushes_of_every_verb_are_one(near: Near) -> None:
    pushed = large(near)
    assigned = near.submit(verbs.Assign([(near.store.table, MANY[:900], 5 * ONES[:900])]))
    again = large(near)
    removed = near.submit(verbs.Remove([(near.store.table, MANY[:800])]))
    warmed = near.submit(verbs.Prefetch([(near.store.table, MANY)]))
    near.settle()
    replies = [pending.reply() for pending in (pushed, assigned, again, removed, warmed)]
    assert replies == [False, None, False, 800, None]
    np.testing.assert_array_equal(values(near)[:, 0], [0.0] * 800 + [4.0] * 100 + [-2.0] * 1100)
    assert near.fars[0].asked.count("applyGradients") >= 2 * (2000 // KEYS + 1)
    assert near.store.engine.attach(near.line._identity.session, "") == 4


def test_parts_wait_until_the_server_has_room_for_them(near: Near) -> None:
    pushed, behind = large(near), near.lookup()
    near.send()
    assert near.fars[0].asked[1:] == ["applyGradients"]
    near.receive()
    near.send()
    assert near.fars[0].asked.count("applyGradients") == 1 + -(-2000 // KEYS)
    near.settle()
    assert (pushed.reply(), behind.is_over) == (False, True)


@pytest.mark.parametrize("lost_after", range(0, 40_000, 2300))
def test_a_push_that_loses_its_connection_is_applied_once(near: Near, lost_after: int) -> None:
    first, second = large(near), large(near)
    for _ in range(4):
        near.send(lost_after // 4)
        near.receive(lost_after // 8)
    near.cut()
    near.now_s += 1
    near.settle()
    assert (first.reply(), second.reply()) == (False, False)
    np.testing.assert_array_equal(values(near), -2 * ONES)


@pytest.mark.parametrize("given_up_after", [0, 100, 200, 5000, 20_000, 47_000, 100_000])
def test_a_push_that_is_given_up_is_applied_whole_or_not_at_all(
    near: Near, given_up_after: int
) -> None:
    dropped = large(near)
    left = given_up_after
    while left > 0 and not dropped.is_over and near.line.has_unsent:
        near.send(min(left, 3000))
        near.receive()
        left -= 3000
    if not dropped.is_over:
        near.line.give_up(dropped)
    small, kept = near.push(), large(near)
    near.settle()
    assert (small.reply(), kept.reply()) == (False, False)
    counts = -values(near)[1:, 0]
    assert set(counts) in ({1.0}, {2.0})


def test_a_part_that_was_not_announced_is_refused(near: Near) -> None:
    assert near.line.wire is not None
    assert near.far is not None
    _, buffers = near.line.wire.apply_gradients(
        9, None, [(near.store.table, MANY[:10], ONES[:10])], 1000
    )
    near.far.replies = b""
    near.far.arrive(b"".join(bytes(buffer) for buffer in buffers))
    assert b"BadInputError" in near.far.replies
    assert b"not announced" in near.far.replies
    assert not values(near).any()


def test_an_error_in_a_part_ends_the_push_and_nothing_was_applied(near: Near) -> None:
    wrong = ONES.copy()
    wrong[1500] = np.nan
    bad = near.submit(verbs.ApplyGradients([(near.store.table, MANY, wrong)], None))
    good = large(near)
    near.settle()
    with pytest.raises(hps.BadInputError, match="gradients"):
        bad.reply()
    assert good.reply() is False
    np.testing.assert_array_equal(values(near), -ONES)
