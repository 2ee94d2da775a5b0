"""Goal: what is planned is what a store then takes, within a tenth. Method: stores are filled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps import cli


def fill(ps: Any, spec: hps.TableSpec, rows: int) -> dict[str, int]:
    table = ps.create_table(spec)
    keys = np.random.default_rng(1).integers(0, 2**63, rows, dtype=np.uint64)
    gradients = np.ones((10_000, spec.dim), np.float32)
    for start in range(0, rows, 10_000):
        part = keys[start : start + 10_000]
        table.apply_gradients(part, gradients[: len(part)])
    return dict(table.stats())


@pytest.mark.parametrize(
    ("dim", "optimizer", "rows"),
    [(8, hps.SGD(0.1), 400_000), (16, hps.Adagrad(0.1), 200_000), (64, hps.Adam(0.1), 60_000)],
)
def test_a_store_takes_what_was_planned(
    tmp_path: Path, dim: int, optimizer: Any, rows: int
) -> None:
    spec = hps.TableSpec("t", dim, optimizer)
    planned = hps.plan(spec, rows)
    settings = {"dram": planned.dram_whole, "nvme": planned.nvme}
    with hps.connect(f"local:{tmp_path / 'whole'}", **settings) as ps:
        stats = fill(ps, spec, rows)
        assert stats["keys"] == rows
        assert stats["rows_dram"] >= 0.9 * rows, "dram_whole keeps them all"
        assert stats["index_bytes"] == pytest.approx(planned.index_bytes, rel=0.1)
        in_rows = stats["dram_bytes"] - stats["index_bytes"]
        per_row = in_rows / stats["rows_dram"]
        assert per_row == pytest.approx(planned.row_dram_bytes, rel=0.1)
    settings["dram"] = planned.dram_smallest
    with hps.connect(f"local:{tmp_path / 'least'}", **settings) as ps:
        stats = fill(ps, spec, rows)
        assert stats["keys"] == rows
        if stats["rows_nvme"]:
            assert stats["nvme_bytes"] / stats["rows_nvme"] == planned.row_nvme_bytes


def test_a_budget_keeps_so_many_rows() -> None:
    spec = hps.TableSpec("t", 64, hps.Adagrad(0.1))
    planned = hps.plan(spec, 10_000_000)
    assert planned.rows_dram is None
    assert planned.dram_smallest < planned.dram_whole < planned.nvme * 2
    assert hps.plan(spec, 10_000_000, planned.dram_whole).rows_dram == 10_000_000
    half = hps.plan(spec, 10_000_000, planned.dram_whole // 2).rows_dram
    assert half is not None
    assert 4_000_000 < half < 5_000_000
    with pytest.raises(hps.BadInputError, match="index and buffers"):
        hps.plan(spec, 10_000_000, "8MiB")
    for wrong in (-1, 1.5, True, 1 << 62):
        with pytest.raises(hps.BadInputError, match="rows is"):
            hps.plan(spec, wrong)  # type: ignore[arg-type]


def test_the_command_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", "--dim", "16", "--rows", "1000000000", "--optimizer", "sgd"]
    assert cli.main([*arguments, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    planned = hps.plan(hps.TableSpec("table", 16, hps.SGD()), 1_000_000_000)
    assert told["nvme"] == planned.nvme
    assert told["row_dram_bytes"] == planned.row_dram_bytes
    assert cli.main(arguments) == 0
    assert "dram_smallest" in capsys.readouterr().out
    assert cli.main([*arguments, "--dram", "8MiB"]) == 2
