"""Goal: our clients, blocking and asyncio, get large answers as if the store were in their process.
Method: the same calls to a server on a unix socket and on TCP, on uvloop and on asyncio, with rows
on NVMe, and to a `local:` store with room for all; every answer bit for bit."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.clients import AsyncClient
from support.server import ServerProcess

import hybridps as hps

ROWS = {1: 200_001, 3: 100_001, 17: 40_001, 64: 30_001}
KEYS_AT_ONCE = 30_000


def spec(dim: int) -> hps.TableSpec:
    return hps.TableSpec(f"dim-{dim}", dim, hps.Adagrad(0.1), hps.Normal(std=0.1), seed=dim)


def train(ps: Any) -> None:
    """Creates and pushes odd keys; the same for every store."""
    for dim, rows in ROWS.items():
        table = ps.create_table(spec(dim))
        keys = np.random.default_rng(dim).permutation(np.arange(1, 2 * rows, 2))
        for part in np.array_split(keys, range(KEYS_AT_ONCE, rows, KEYS_AT_ONCE)):
            gradients = np.random.default_rng(part[0]).normal(size=(len(part), dim))
            table.apply_gradients(part, gradients.astype(np.float32))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("local")
    with hps.connect(f"local:{path}", dram="256MiB", nvme="1GiB") as ps:
        train(ps)
        yield ps


@pytest.fixture(scope="module", params=["unix-uvloop", "unix-asyncio", "tcp-uvloop", "tcp-asyncio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    kind, _, loop = request.param.partition("-")
    where = ["--unix", str(folder / "s"), "--listen", "off"] if kind == "unix" else []
    arguments = [*where, "--loop", loop]
    with ServerProcess(folder / "d", *arguments, dram="12MiB", nvme="512MiB") as running:
        with hps.connect(running.url) as ps:
            train(ps)
            assert ps.table("dim-64").stats()["rows_nvme"] > 10_000
        yield running
        assert [event for event in running.events() if event["level"] == "error"] == []


@pytest.fixture(params=["blocking", "aio"])
def ps(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[Any]:
    connect = hps.connect if request.param == "blocking" else AsyncClient
    with connect(server.url) as client:
        yield client


def sample(dim: int, count: int, seed: int) -> np.ndarray:
    """Keys in any order, half of them absent."""
    return np.random.default_rng(seed).integers(0, 2 * ROWS[dim], count)


def assert_same(got: Any, expected: Any) -> None:
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dim", ROWS)
def test_lookups_of_one_table(ps: Any, local: Any, dim: int) -> None:
    table, same = ps.table(f"dim-{dim}"), local.table(f"dim-{dim}")
    most = 600_000 if dim == 1 else 3_000_000 // dim
    for seed, count in enumerate((1, (3 << 19) // (4 * dim), (3 << 19) // (4 * dim) + 1, most)):
        keys = sample(dim, count, seed)
        assert_same(table.lookup(keys), same.lookup(keys))
        rows, found = table.lookup(keys, return_found=True)
        expected, expected_found = same.lookup(keys, return_found=True)
        assert_same(rows, expected)
        assert_same(found, expected_found)


def test_lookups_of_several_tables(ps: Any, local: Any) -> None:
    for seed in range(4):
        counts = [[300_001, 0, 90_001, 30_001], [0, 333_333, 1, 0], [1, 0, 0, 50_000], [0] * 4]
        order = np.random.default_rng(seed).permutation(list(ROWS))
        batches = {f"dim-{dim}": sample(dim, counts[seed][n], seed) for n, dim in enumerate(order)}
        got, expected = (
            ps.lookup(batches, return_found=True),
            local.lookup(batches, return_found=True),
        )
        for name in batches:
            assert_same(got[name][0], expected[name][0])
            assert_same(got[name][1], expected[name][1])


def test_a_training_step_of_many_rows(ps: Any, local: Any) -> None:
    """Reads that create, a push of what was read, a read of what was pushed."""
    keys = np.random.default_rng(9).permutation(60_001)
    table, same = (store.create_table(spec_of_a_step()) for store in (ps, local))
    for store in (table, same):
        store.remove(keys)
    for _ in range(2):
        rows, expected = table.lookup_or_insert(keys), same.lookup_or_insert(keys)
        assert_same(rows, expected)
        table.apply_gradients(keys, rows)
        same.apply_gradients(keys, rows)
        assert_same(table.lookup(keys), same.lookup(keys))


def spec_of_a_step() -> hps.TableSpec:
    return hps.TableSpec("step", 33, hps.SGD(0.5), hps.Normal(std=0.1), seed=1)


def test_a_full_table_is_told_and_the_client_goes_on(ps: Any) -> None:
    """The cap is met after several mebibytes of rows; the client must not take them for rows."""
    table = ps.create_table(hps.TableSpec("capped", 64, hps.SGD(0.5), nvme="8MiB"))
    with pytest.raises(hps.StoreFullError, match=r"\"capped\": \d+ new keys would take its rows"):
        table.lookup_or_insert(np.arange(100_000))
    keys = np.arange(100_000)
    rows, found = table.lookup(keys, return_found=True)
    assert 4096 < found.sum() < 40_000
    initial = table.spec.initial_rows(keys)
    assert_same(rows, np.where(found[:, None], initial, np.float32(0)))
    table.remove(keys)
    assert_same(table.lookup_or_insert(keys[:10_000]), initial[:10_000])
    table.remove(keys)


async def test_many_calls_at_once_over_one_client(server: ServerProcess, local: Any) -> None:
    async with hps.aio.connect(server.url, timeout=120) as ps:
        tables = {dim: ps.table(f"dim-{dim}") for dim in ROWS}

        async def one(seed: int) -> None:
            dim = list(ROWS)[seed % 4]
            size = [20, 4 << 20, 4, 2 << 20][seed // 4 % 4]
            keys = sample(dim, size // (4 * dim) + 1, seed)
            rows = await tables[dim].lookup(keys)
            expected = await asyncio.to_thread(local.table(f"dim-{dim}").lookup, keys)
            assert_same(rows, expected)

        async def cold() -> None:
            for _ in range(10):
                assert await tables[3].size() == ROWS[3]
                assert "dim-3" in await ps.tables()

        await asyncio.gather(*[one(seed) for seed in range(48)], cold(), cold())
