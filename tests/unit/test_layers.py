"""Goal: what layers of every framework share is right by itself. Method: stores that only write
down what they are asked, and a loader that misbehaves; no framework is imported."""

import itertools
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import hybridps as hps
from hybridps.layers import bags
from hybridps.layers.gradients import Gradient, push, without_padding
from hybridps.layers.ids import as_padding, as_patterns, is_kept
from hybridps.layers.lookahead import Feature, Finder, LookAhead, warm
from hybridps.layers.reading import Purpose, Request, read

SPEC = hps.TableSpec("item", 3, hps.SGD(1.0), hps.Normal(std=1.0), seed=1)
USER = hps.TableSpec("user", 2, hps.SGD(1.0), hps.Normal(std=1.0), seed=2)
IDS = np.array([[4, -1], [5, 4]])


class Store:
    """Every key but 5 has a row, its initial one."""

    def __init__(self):
        self.calls = []

    def lookup_or_insert(self, batch):
        self.calls.append(("lookup_or_insert", batch))
        return {name: spec(name).initial_rows(ids) for name, ids in batch.items()}

    def lookup(self, batch, return_found=False):
        self.calls.append(("lookup", batch))
        found = {name: ids != 5 for name, ids in batch.items()}
        rows = {n: spec(n).initial_rows(ids) * found[n][:, None] for n, ids in batch.items()}
        return {n: (rows[n], found[n]) for n in batch} if return_found else rows

    def apply_gradients(self, batch):
        self.calls.append(("apply_gradients", batch))

    def prefetch(self, batch):
        self.calls.append(("prefetch", batch))


def spec(name):
    return {"item": SPEC, "user": USER}[name]


def test_no_framework_is_imported():
    rooms = ["ids", "bags", "reading", "gradients", "lookahead", "stores"]
    program = "import sys\n" + "\n".join(f"import hybridps.layers.{room}" for room in rooms)
    program += "\nassert not {'torch', 'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_patterns_are_those_of_the_client():
    assert as_patterns(np.array([[2**64 - 1, 1]], np.uint64), "t").tolist() == [[-1, 1]]
    assert as_patterns(np.array([-3], np.int8), "t").tolist() == [-3]
    texts = np.array(["shoes", "gr\u00f6\u00dfe"])
    wanted = as_patterns(texts, "t")
    assert (
        as_patterns(np.array([t.encode() for t in texts.tolist()], object), "t") == wanted
    ).all()
    assert (as_patterns(texts.astype(object), "t") == wanted).all()
    assert as_patterns(np.zeros((2, 0), np.int32), "t").shape == (2, 0)
    for bad in (np.ones(2), np.ones(2, bool), np.array([b"\xff"], object), np.array([None])):
        with pytest.raises(hps.BadInputError, match="table 't'"):
            as_patterns(bad, "t")


def test_padding_is_one_pattern_however_it_is_written():
    assert as_padding(None, "t") is None
    assert as_padding(2**64 - 1, "t") == as_padding(-1, "t") == -1
    assert as_padding(2**63 - 1, "t") == 2**63 - 1
    for bad in (True, 1.0, 2**64, -(2**63) - 1, "0"):
        with pytest.raises(hps.BadInputError, match="padding_idx"):
            as_padding(bad, "t")
    assert is_kept(IDS, None) is None
    assert is_kept(IDS, 99) is None
    assert is_kept(IDS, -1).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("seed", range(20))
def test_bags_without_padding_are_the_bags_of_what_is_left(seed):
    random = np.random.default_rng(seed)
    ids = random.integers(4, size=random.integers(0, 30))
    cuts = np.sort(random.integers(0, ids.size + 1, size=random.integers(0, 6)))
    begins = np.concatenate(([0], cuts)).astype(np.int64)
    assert (bags.checked(begins, ids.size, has_end=False, table="t") == begins).all()
    offsets = bags.with_end(begins, ids.size, has_end=False)
    kept = ids != 0
    left = bags.without(kept, offsets)
    for number, (low, high) in enumerate(itertools.pairwise(offsets)):
        wanted = [i for i in ids[low:high].tolist() if i != 0]
        assert ids[kept][left[number] : left[number + 1]].tolist() == wanted


def test_offsets_that_do_not_fit_are_named():
    for offsets, has_end in [([1], False), ([0, 3, 2], False), ([0, 5], True), ([], True)]:
        with pytest.raises(hps.BadInputError, match="table 't'"):
            bags.checked(np.array(offsets, np.int64), 4, has_end=has_end, table="t")
    assert bags.of_lines(2, 3, has_end=True).tolist() == [0, 3, 6]
    assert bags.of_lines(2, 3, has_end=False).tolist() == [0, 3]


def test_one_read_for_all_features():
    ps = Store()
    requests = {
        "a": Request(SPEC, IDS, -1),
        "b": Request(USER, np.array(7)),
        "c": Request(SPEC, np.array([6, 6])),
        "d": Request(SPEC, np.array([-1, -1]), -1),
    }
    rows = read(ps, requests, Purpose.TRAINING)
    ((verb, batch),) = ps.calls
    assert verb == "lookup_or_insert"
    assert {t: k.tolist() for t, k in batch.items()} == {"item": [4, 5, 4, 6, 6], "user": [7]}
    wanted = SPEC.initial_rows(IDS)
    wanted[0, 1] = 0
    np.testing.assert_array_equal(rows["a"], wanted)
    np.testing.assert_array_equal(rows["b"], USER.initial_rows(7))
    np.testing.assert_array_equal(rows["c"], SPEC.initial_rows([6, 6]))
    assert not rows["d"].any()


def test_a_read_for_a_step_that_counted_gives_the_same_rows_and_counts_nothing():
    ps = Store()
    request = {"a": Request(SPEC, IDS, -1)}
    again = read(ps, request, Purpose.AGAIN)["a"]
    np.testing.assert_array_equal(again, read(ps, request, Purpose.TRAINING)["a"])
    assert not read(ps, request, Purpose.INFERENCE)["a"][1, 0].any(), "an absent key is zeros"
    assert [verb for verb, _ in ps.calls] == ["lookup", "lookup_or_insert", "lookup"]


def test_one_push_a_store():
    one, two = Store(), Store()

    def gradient(ps, table, *ids):
        return Gradient(ps, table, np.array(ids), np.full((len(ids), 2), len(ids), np.float32))

    push([])
    push(gradient(*g) for g in [(one, "a", 1), (two, "a", 2), (one, "b"), (one, "a", 3, 1)])
    assert [len(ps.calls) for ps in (one, two)] == [1, 1]
    ((_, tables),) = one.calls
    assert set(tables) == {"a"}
    assert tables["a"][0].tolist() == [1, 3, 1]
    assert tables["a"][1].tolist() == [[1, 1], [2, 2], [2, 2]]


def test_gradients_of_padding_are_left_out():
    ids, rows = without_padding(IDS, np.arange(8, dtype=np.float32).reshape(2, 2, 2), -1)
    assert ids.tolist() == [4, 5, 4]
    assert rows.tolist() == [[0, 1], [4, 5], [6, 7]]


class Lists:
    """A framework whose ids are lists of integers."""

    def named(self, value):
        return value if isinstance(value, dict) else None

    def ids_of(self, value, _table):
        return np.array(value) if isinstance(value, list) else None

    def first_ids(self, batch, _table):
        return np.array(batch) if isinstance(batch, list) else None


def finder(ps):
    features = [
        Feature(frozenset({"x", "item"}), ps, "item"),
        Feature(frozenset({"y"}), ps, "user"),
    ]
    return Finder(features, Lists())


def test_look_ahead_warms_all_tables_in_one_call():
    ps = Store()
    found = finder(ps).find(({"x": [1], "deep": {"y": [2], "item": [3]}}, [0.5]))
    warm(found)
    ((_, tables),) = ps.calls
    assert {t: k.tolist() for t, k in tables.items()} == {"item": [1, 3], "user": [2]}
    with pytest.raises(hps.BadInputError, match=r"type dict.*'item', 'x', 'y'"):
        finder(ps).find({"z": [1]})


class Failing(Store):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def prefetch(self, batch):
        super().prefetch(batch)
        raise self.error


@pytest.mark.parametrize("error", [hps.UnavailableError("gone"), hps.BadInputError("too many")])
def test_a_store_that_refuses_the_hint_stops_no_loop(error):
    ps = Failing(error)
    ahead = LookAhead([{"x": [i]} for i in range(5)], finder(ps).find, 2)
    with pytest.warns(UserWarning, match=f"without: {error}") as told:
        assert [batch["x"] for batch in ahead] == [[i] for i in range(5)]
    assert len(told) == 1
    assert len(ps.calls) == 5


def test_a_slow_store_keeps_no_batch_back():
    ps, answers, was_answered = Store(), threading.Event(), []
    ps.prefetch = lambda _: was_answered.append(answers.wait(30))
    loop = iter(LookAhead([{"x": [0]}, {"x": [1]}], finder(ps).find, 2))
    assert next(loop) == {"x": [0]}
    answers.set()
    assert next(loop) == {"x": [1]}
    assert list(loop) == []
    assert was_answered == [True, True], "no batch waited for an answer to run out"


@pytest.mark.parametrize("leave", ["close", "raise", "drop"])
def test_a_loop_is_left_at_once_whatever_the_loader_does(leave):
    """The loader would wait for a minute; had leaving waited for it, this would too."""
    ps, waits, released = Store(), threading.Event(), threading.Event()

    def batches():
        yield {"x": [0]}
        waits.set()
        released.wait(60)
        yield {"x": [1]}

    loop = iter(LookAhead(batches(), finder(ps).find, 2))
    next(loop)
    assert waits.wait(10)
    if leave == "close":
        loop.close()
    elif leave == "raise":
        with pytest.raises(OSError, match="stop"):
            loop.throw(OSError("stop"))
    else:
        del loop
    assert not released.is_set()
    (thread,) = [t for t in threading.enumerate() if t.name == "hybridps-lookahead"]
    released.set()
    thread.join(10)
    assert not thread.is_alive()
    assert [tables["item"].tolist() for _, tables in ps.calls] == [[0]], "nothing after the loop"


def test_errors_of_the_loader_and_of_the_user_reach_the_loop():
    def batches():
        yield {"x": [0]}
        raise OSError("disk gone")

    with warnings.catch_warnings(), pytest.raises(OSError, match="disk gone"):
        list(LookAhead(batches(), finder(Store()).find, 1))
    with pytest.raises(hps.BadInputError, match="no ids"):
        list(LookAhead([{"z": [1]}], finder(Store()).find, 1))
    with pytest.raises(hps.BadInputError, match="depth"):
        LookAhead([], finder(Store()).find, 0)
