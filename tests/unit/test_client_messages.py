"""Goal: every call of the client becomes a message that the server reads, and nothing that a server
answers is believed unseen. Method: each kind of call through the server's own machine; answers of
the wrong kind, count and length by hand."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.wired import feed

import hybridps as hps
from hybridps import _core, verbs
from hybridps.client import messages
from hybridps.rpc import schemas
from hybridps.verbs.calls import Call, Cold, ServerInfo
from hybridps.verbs.scatter import Operation

KEYS = np.array([7, 8, 9], np.uint64)
ROWS = np.ones((3, 2), np.float32)
SPEC = hps.TableSpec("item", 2, hps.Adam(0.1), hps.Normal(std=0.5), seed=3, dram="2MiB")
EXPIRIES = (hps.After("30d"), hps.AfterSteps(2**40), hps.BelowNorm(0.5))
CALLS: list[Call[Any]] = [
    verbs.Lookup([(1, KEYS)], True),
    verbs.LookupOrInsert([(1, KEYS, None)]),
    verbs.ApplyGradients([(1, KEYS, ROWS)], 5),
    verbs.Assign([(1, KEYS, ROWS)]),
    verbs.Remove([(1, KEYS)]),
    verbs.Prefetch([(1, KEYS)]),
    verbs.LookupPooled([(1, KEYS, np.array([1, 2], np.uint32), None)]),
    verbs.Inspect(1, KEYS),
    verbs.StatisticsOf(1, KEYS),
    verbs.ImportRows([(1, KEYS, ROWS)]),
    verbs.ExportRows(1, 0, 1 << 36, True, 1 << 20),
    verbs.Scatter([(1, KEYS, ROWS)], Operation.MAX),
    verbs.Scrub(0, 1 << 20),
    verbs.CheckpointJob("j", "{}"),
    verbs.RestoreJob("j", "{}"),
    verbs.CreateTable(SPEC.to_json()),
    verbs.OpenTable("item"),
    verbs.ListTables(),
    verbs.DropTable("item"),
    verbs.SetLearningRate(1, 0.5),
    verbs.Alter(1, {"dram": None}),
    verbs.Size(1),
    verbs.KeysOf(1, 0),
    verbs.TableStats(1),
    verbs.Stats(),
    verbs.Flush(),
    verbs.NowOf(),
    verbs.Staleness(),
    verbs.Changes(1, 2**35, 2**36, 7, 1 << 20),
    verbs.Expire(1, 17, 2**40),
    verbs.Expire(1, 17, None),
    *(verbs.CreateTable(replace(SPEC, expiry=expiry).to_json()) for expiry in EXPIRIES),
    *(verbs.Alter(1, {"expiry": expiry.options()}) for expiry in EXPIRIES),
    verbs.Alter(1, {"expiry": None}),
]


def test_no_kind_of_call_is_left_out() -> None:
    assert {type(call) for call in CALLS} == set(verbs.VERBS.values()) - {verbs.Hello}


@pytest.fixture
def server(tmp_path: Any) -> Any:
    store = _core.Store(str(tmp_path), dram=16 << 20, nvme=64 << 20, durability="none", threads=1)
    yield _core.Connection(store, frame_limit=1 << 20, keys_limit=1000)
    store.close()


def test_every_call_is_read_by_the_server_under_its_name(server: Any) -> None:
    client = _core.ClientConnection()
    opening = client.start(5, "me")[1]
    (login,) = feed(server, opening)
    assert [event.verb for event in server.accept(login.question)] == ["hello"]
    for call in CALLS:
        question, buffers = messages.begin(client, call, 3)
        (event,) = feed(server, b"".join(bytes(buffer) for buffer in buffers))
        assert event.question == question
        assert event.verb == call.method()
        if isinstance(call, Cold):
            with schemas.read_params(event.verb, event.params) as params:
                assert meaning(type(call).read(params)) == meaning(call)


def meaning(call: Call[Any]) -> Any:
    """A call, its spec (JSON has several spellings of one), or what compares of its arrays."""
    if isinstance(call, (verbs.Inspect, verbs.StatisticsOf)):
        return call.table, call.keys.tolist()
    return hps.TableSpec.from_json(call.spec) if isinstance(call, verbs.CreateTable) else call


def answer(kind: str, **fields: Any) -> Any:
    return SimpleNamespace(kind=kind, exception=None, **fields)


def test_rows_are_checked_against_the_keys() -> None:
    call = verbs.Lookup([(1, KEYS)], True)
    good = [(ROWS.tobytes(), b"\1\0\1")]
    ((rows, found),) = messages.finish(call, answer("rows", rows=good), is_first=True)
    assert (rows.shape, found.tolist()) == ((3, 2), [True, False, True])
    for wrong in (
        [],
        good * 2,
        [(ROWS.tobytes()[:-4], b"\1\0\1")],
        [(ROWS.tobytes(), b"\1\0")],
        [(ROWS.tobytes(), None)],
    ):
        with pytest.raises(hps.HybridPSError, match="answered"):
            messages.finish(call, answer("rows", rows=wrong), is_first=True)


def test_a_duplicate_counts_only_if_it_is_no_echo() -> None:
    push = verbs.ApplyGradients([(1, KEYS, ROWS)], 5)
    for duplicate in (False, True):
        told = answer("duplicate", duplicate=duplicate)
        assert messages.finish(push, told, is_first=True) is duplicate
        assert messages.finish(push, told, is_first=False) is False


def test_exceptions_come_back_by_class_and_text() -> None:
    told = SimpleNamespace(kind="exception", exception=("failed", "StoreFullError", "no room"))
    for call in CALLS:
        with pytest.raises(hps.StoreFullError, match="no room"):
            messages.finish(call, told, is_first=True)  # type: ignore[arg-type]


def test_a_server_out_of_its_place_is_refused() -> None:
    info = ServerInfo("1", 1, 3, 1 << 20, 1 << 20)
    messages.check_server(info, "hps://a:1", 1, 3)
    with pytest.raises(hps.ConfigError, match=r"shard 1/3.*names it as 0/3"):
        messages.check_server(info, "hps://a:1", 0, 3)


def test_a_spec_survives_the_trip() -> None:
    results = schemas.new_results("createTable")
    params = schemas.new_params("createTable")
    verbs.CreateTable(SPEC.to_json()).fill(params)
    results.table.spec = params.spec
    results.table.id = 4
    opened = messages.finish(
        verbs.OpenTable("item"), answer("results", results=results.to_bytes()), is_first=True
    )
    assert (opened.id, opened.spec) == (4, SPEC)
