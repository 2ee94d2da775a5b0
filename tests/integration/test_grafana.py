"""Goal: the Grafana board asks for what a server tells. Method: its queries' names and labels are
looked up in the metrics of a real server that has done some work."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families
from support.server import ServerProcess

import hybridps as hps

BOARD = Path(__file__).parents[2] / "docs/grafana/hybridps.json"
LABELS = {"instance"}  # What Prometheus adds itself.


def metrics(server: ServerProcess) -> dict[str, set[str]]:
    """Names of samples, and the labels that each has."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.http("/metrics")[1]):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


async def test_the_board_asks_for_what_is_there(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d") as server:

        def work() -> None:
            with hps.connect(server.url) as ps:
                table = ps.create_table(hps.TableSpec("item", 4, optimizer=hps.SGD()))
                table.apply_gradients(range(10), np.ones((10, 4), np.float32))

        await asyncio.to_thread(work)
        told = metrics(server)
    board = json.loads(BOARD.read_text())
    queries = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    queries += [v["query"]["query"] for v in board["templating"]["list"] if v["type"] == "query"]
    assert len(queries) > 20
    for query in queries:
        names = re.findall(r"hybridps_\w+", query)
        assert names, query
        for name in names:
            assert name in told, f"{name} of {query}"
        by = re.findall(r"by \(([\w, ]+)\)", query)
        asked = {label for group in by for label in re.split(r", *", group)}
        asked |= set(re.findall(r"(\w+)(?:=~|!=)", query)) | set(re.findall(r", (\w+)\)$", query))
        for name in names:
            assert asked - LABELS <= told[name], f"labels of {query}"
