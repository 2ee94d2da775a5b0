"""Goal: the ops port of a real server counts what clients do. Method: a stock client's calls, then
the metrics as Prometheus reads them, and the page as a person would."""

import asyncio
from pathlib import Path

import capnp
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.server import ServerProcess
from support.stock import stock_session


def samples(server: ServerProcess) -> dict[str, float]:
    """`name{label="value"}` to value, labels in alphabetical order."""
    status, text = server.http("/metrics")
    assert status == 200
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


async def test_metrics_count_calls_rows_and_connections(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            before = samples(server)
            assert before["hybridps_connections"] == 0
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("item", 4)
                await ps.apply_gradients(table, range(10), np.ones((10, 4), np.float32))
                for _ in range(3):
                    await ps.lookup(table, range(20), 4)
                with pytest.raises(capnp.KjException, match="TableNotFoundError: "):
                    await ps.lookup(99, range(20), 4)
                with pytest.raises(capnp.KjException, match="TableNotFoundError: "):
                    await ps.remote.table("none")
                after = samples(server)
    assert all(name.startswith("hybridps_") for name in after)
    assert after["hybridps_connections"] == 1
    assert after['hybridps_requests_total{code="ok",method="lookup"}'] == 3
    assert after['hybridps_requests_total{code="ok",method="applyGradients"}'] == 1
    assert after['hybridps_requests_total{code="ok",method="createTable"}'] == 1
    for method in ("lookup", "table"):
        code = 'code="TableNotFoundError"'
        assert after[f'hybridps_requests_total{{{code},method="{method}"}}'] == 1
    assert after['hybridps_request_seconds_count{method="lookup"}'] == 4
    assert after['hybridps_keys{table="item"}'] == 10
    assert after["hybridps_store_tables"] == 1
    assert after["hybridps_store_dram_limit"] == 16 << 20
    assert after["hybridps_process_resident_memory_bytes"] > 1 << 20
    loop, version = server.ready["loop"], server.ready["version"]
    build = f'hybridps_build_info{{loop="{loop}",shard="0/1",version="{version}"}}'
    assert after[build] == 1


async def test_the_page_shows_a_table_and_its_calls(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                await ps.create_table("item-of.shop_1", 4)
            status, text = server.http("/")
            assert status == 200
            for shown in ("item-of.shop_1", server.url, str(tmp_path / "d"), "createTable"):
                assert shown in text


async def test_bytes_in_flight_return_to_zero(tmp_path: Path) -> None:
    async with capnp.kj_loop():
        with ServerProcess(tmp_path / "d", dram="64MiB") as server:
            async with stock_session(server.address) as ps:
                await ps.hello(1)
                table = await ps.create_table("t", 64)
                for _ in range(3):
                    await ps.lookup(table, range(20_000), 64)
                # A client has its answer a moment before the server's loop learns that it left.
                for _ in range(500):
                    left = samples(server)["hybridps_inflight_bytes"]
                    if left == 0:
                        break
                    await asyncio.sleep(0.01)
                assert left == 0


def test_ops_can_be_left_out(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d", "--ops", "off") as server:
        assert server.ready["ops"] is None
        assert server.stop() == 0
