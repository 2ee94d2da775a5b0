"""Goal: every verb of the service reads the schema's params and fills its results, and refuses
what is wrong by class. Method: whole params and results messages, a real store, no socket."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from hybridps import _core, errors
from hybridps.config import load
from hybridps.rpc import schemas
from hybridps.security.rights import Right
from hybridps.server.server import _open
from hybridps.server.service import Service
from hybridps.server.workers import Workers
from hybridps.verbs.calls import Site
from hybridps.verbs.names import camel_case
from hybridps.verbs.specs import spec_json


@dataclass
class Peer:
    """A connection as the service sees it, with the calls a client would make."""

    service: Service
    store: _core.Store
    session: int = 0
    client_id: str = ""
    peer: str = "here"
    caller: str = ""
    permitted: list[tuple[str, Right, list[int | str]]] = field(default_factory=list)

    def permit(self, verb: str, right: Right, tables: Iterable[int | str]) -> None:
        self.permitted.append((verb, right, list(tables)))

    def enter(self, session: int, client_id: str, worker: tuple[int, int] | None, last: int) -> int:
        self.session, self.client_id, self.worker = session, client_id, worker
        return last

    async def call(self, verb: str, **fields: Any) -> dict[str, Any]:
        params = schemas.new_params(verb)
        for name, value in fields.items():
            setattr(params, name, value)
        begun: list[None] = []
        results = await self.service.call(self, verb, params.to_bytes(), lambda: begun.append(None))
        assert len(begun) == (verb != "prefetch"), "engine work begins once"
        with schemas.read_results(verb, results) as reader:
            return reader.to_dict()


@pytest_asyncio.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    config = load(["--data", str(tmp_path / "d"), "--dram", "64MiB", "--nvme", "64MiB"], {})
    workers = Workers(2)
    store = _open(config)
    yield Peer(Service(store, config, workers), store)
    await workers.close()
    store.close()


# What is done to gradients: nothing.
GRADIENTS = {"weightDecay": 0.0, "clipValue": 0.0, "clipNorm": 0.0}


def spec(name: str = "item", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "dim": 2,
        "optimizer": {"learningRate": 0.5, "sgd": None},
        "initializer": {"zeros": None},
        "seed": 7,
        **changes,
    }


async def test_hello_names_the_session_and_tells_the_limits(peer: Peer) -> None:
    server = (await peer.call("hello", session=2**64 - 2, clientId="trainer"))["server"]
    assert peer.session == 2**64 - 2
    assert server["version"] == _core.__version__
    assert (server["shard"], server["shards"], server["lastPush"]) == (0, 1, 0)
    assert (server["frameLimit"], server["keysLimit"]) == (64 << 20, 1 << 20)
    assert {camel_case(feature) for feature in server["features"]} >= schemas.VERBS


@pytest.mark.parametrize("session", [0, _core.WORKERS_SESSION])
async def test_hello_refuses_sessions_that_are_no_clients(peer: Peer, session: int) -> None:
    """None, and the one of what workers push together."""
    with pytest.raises(errors.BadInputError, match=f"session is {session};"):
        await peer.call("hello", session=session)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"sgd": None},
        {"adagrad": {"initialAccumulator": 0.25, "eps": 0.5}},
        {"rowWiseAdagrad": {"initialAccumulator": 0.25, "eps": 0.5}},
        {"adam": {"beta1": 0.9, "beta2": 0.999, "eps": 0.5}},
        {"momentum": {"momentum": 0.5, "nesterov": True}},
        {"adamW": {"beta1": 0.9, "beta2": 0.999, "eps": 0.5}, "weightDecay": 0.25},
        {"rmsProp": {"alpha": 0.99, "eps": 0.5}, "clipValue": 0.5, "clipNorm": 2.0},
        {"sparseGroupFtrl": {"initialAccumulator": 0.5, "l1": 0.25, "l2": 0.125, "l21": 2.0}},
    ],
)
@pytest.mark.parametrize(
    "initializer",
    [
        {"zeros": None},
        {"constant": 0.5},
        {"uniform": {"low": -0.5, "high": 0.5}},
        {"normal": {"mean": 0.5, "std": 0.25}},
        {"truncatedNormal": {"mean": 0.5, "std": 0.25}},
    ],
)
async def test_specs_come_back_as_they_went(
    peer: Peer, optimizer: dict[str, Any], initializer: dict[str, Any]
) -> None:
    asked = spec(
        optimizer={**GRADIENTS, "learningRate": 0.125, **optimizer},
        initializer=initializer,
        seed=2**64 - 1,
        dram=1 << 20,
        nvme=1 << 30,
    )
    created = (await peer.call("createTable", spec=asked))["table"]
    assert created["spec"] == {**asked, "dtype": "float32"}
    assert created["warnings"] == []
    assert (await peer.call("table", name="item"))["table"]["spec"] == created["spec"]


async def test_opening_with_other_live_settings_warns_and_another_shape_is_refused(
    peer: Peer,
) -> None:
    first = (await peer.call("createTable", spec=spec()))["table"]
    other = spec(optimizer={"learningRate": 0.25, "sgd": None})
    again = (await peer.call("createTable", spec=other))["table"]
    assert again["id"] == first["id"]
    assert again["spec"]["optimizer"]["learningRate"] == 0.5
    assert "learning_rate" in again["warnings"][0]
    with pytest.raises(errors.TableMismatchError, match="dim"):
        await peer.call("createTable", spec=spec(dim=3))


async def test_a_bad_spec_is_refused(peer: Peer) -> None:
    nan = {"learningRate": float("nan"), "sgd": None}
    for wrong in (spec(dim=0), spec(name="../x"), spec(optimizer=nan), spec(dtype="int8")):
        with pytest.raises(errors.BadInputError):
            await peer.call("createTable", spec=wrong)
    assert (await peer.call("tables"))["names"] == []


async def test_size_and_keys(peer: Peer) -> None:
    table = (await peer.call("createTable", spec=spec()))["table"]["id"]
    patterns = np.array([1, 2**63, 3], np.uint64)
    peer.store.assign(5, 1, [(table, patterns, np.ones((3, 2), np.float32))])
    assert (await peer.call("size", table=table))["keys"] == 3
    listed, bucket = [], 0
    while bucket < 4096:
        part = await peer.call("keys", table=table, bucket=bucket)
        listed.append(np.frombuffer(part["keys"], "<u8"))
        assert part["next"] > bucket
        bucket = part["next"]
    assert sorted(np.concatenate(listed)) == [1, 3, 2**63]
    assert (await peer.call("hello", session=5))["server"]["lastPush"] == 1


async def test_live_settings(peer: Peer) -> None:
    table = (await peer.call("createTable", spec=spec(dram=1 << 20)))["table"]["id"]
    await peer.call("setLearningRate", table=table, learningRate=0.25)
    await peer.call("alter", table=table, change={"dram": {"value": 0}, "nvme": {"value": 1 << 30}})
    stored = (await peer.call("table", name="item"))["table"]["spec"]
    assert stored["optimizer"]["learningRate"] == 0.25
    assert (stored["dram"], stored["nvme"]) == (0, 1 << 30)
    await peer.call("alter", table=table, change={"learningRate": {"value": 0.125}})
    stored = (await peer.call("table", name="item"))["table"]["spec"]
    assert (stored["optimizer"]["learningRate"], stored["nvme"]) == (0.125, 1 << 30)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(errors.BadInputError):
            await peer.call("setLearningRate", table=table, learningRate=wrong)


async def test_tables_are_listed_and_dropped(peer: Peer) -> None:
    for name in ("b", "a"):
        await peer.call("createTable", spec=spec(name))
    assert sorted((await peer.call("tables"))["names"]) == ["a", "b"]
    await peer.call("dropTable", name="a")
    assert (await peer.call("tables"))["names"] == ["b"]
    for verb, fields in (
        ("dropTable", {"name": "a"}),
        ("table", {"name": "a"}),
        ("size", {"table": 99}),
        ("keys", {"table": 99, "bucket": 0}),
        ("tableStats", {"table": 99}),
        ("setLearningRate", {"table": 99, "learningRate": 0.5}),
    ):
        with pytest.raises(errors.TableNotFoundError):
            await peer.call(verb, **fields)


async def test_counters_and_flush(peer: Peer) -> None:
    table = (await peer.call("createTable", spec=spec()))["table"]["id"]
    await peer.call("flush")
    counters = {c["name"]: c["value"] for c in (await peer.call("stats"))["counters"]}
    assert counters["tables"] == 1
    of_table = {
        c["name"]: c["value"] for c in (await peer.call("tableStats", table=table))["counters"]
    }
    assert of_table["keys"] == 0


async def test_an_unknown_verb_is_refused(peer: Peer) -> None:
    with pytest.raises(errors.BadInputError, match="'frobnicate'"):
        await peer.service.call(peer, "frobnicate", b"", lambda: None)


async def test_a_bug_is_told_without_a_traceback(
    peer: Peer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> dict[str, int]:
        raise RuntimeError("secret detail")

    class Broken:
        stats = staticmethod(broken)

    monkeypatch.setattr(peer.service, "_site", Site(Broken(), peer.service._site.info))
    with pytest.raises(errors.HybridPSError) as told:
        await peer.call("stats")
    assert "secret" not in str(told.value)
    assert "stats failed inside the server" in str(told.value)
    assert "secret detail" in caplog.text


def test_an_unknown_member_of_a_union_is_refused() -> None:
    class FromTheFuture:
        def which(self) -> str:
            raise ValueError("unknown")

    class Spec:
        optimizer = FromTheFuture()

    with pytest.raises(errors.BadInputError, match=r"optimizer.*newer server"):
        spec_json(Spec())
