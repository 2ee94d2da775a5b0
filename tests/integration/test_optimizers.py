"""Goal: every optimizer is the rule that its class names, for any cache size and number of shards.

Method: a thousand random steps with repeated keys, in DRAM, and again with DRAM for the index and
few of the rows, on one server and on two: bit-equal to each other, and within float32 rounding of
plain NumPy; torch itself where torch has the rule.

Bound: 2e-5 of the greatest number of the table. A step rounds each number a few times (6e-8 of it
each), and the hundred keys that half of all ids name take some three hundred steps.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rules import Rule
from support.server import ServerProcess

import hybridps as hps

STEPS, DIM, HOT, KEYS, BATCH = 1000, 16, 100, 20_000, 64
OPTIMIZERS = {
    "SGD": hps.SGD(0.1),
    "SGD, clipped and decayed": hps.SGD(0.1, weight_decay=0.01, clip_value=0.5, clip_norm=1.0),
    "Momentum": hps.Momentum(0.01),
    "Nesterov": hps.Momentum(0.01, 0.8, nesterov=True),
    "Adagrad": hps.Adagrad(0.05, 0.1, weight_decay=0.01),
    "RowWiseAdagrad": hps.RowWiseAdagrad(0.05, clip_norm=2.0),
    "RMSprop": hps.RMSprop(0.001),
    "Adam": hps.Adam(0.001, weight_decay=0.1, clip_value=1.0),
    "AdamW": hps.AdamW(0.001, weight_decay=0.1),
    "AMSGrad": hps.AMSGrad(0.001),
    "RAdam": hps.RAdam(0.001, (0.9, 0.99)),
    "AdaBelief": hps.AdaBelief(0.001, eps=1e-12),
    "Lamb": hps.Lamb(0.001, weight_decay=0.01),
    "GroupAdam without groups": hps.GroupAdam(0.001),
    "GroupAdam": hps.GroupAdam(0.01, l1=0.01, l2=0.01, l21=0.1),
    "FTRL": hps.FTRL(0.05, l1=0.1, l2=0.1),
    "SparseGroupFtrl": hps.SparseGroupFtrl(0.05, l1=0.1, l2=0.1, l21=0.3),
}


def steps(seed: int) -> Any:
    """Pushes: half of the ids are of few hot keys, so they repeat within a push and over pushes."""
    random = np.random.default_rng(seed)
    for _ in range(STEPS):
        hot, cold = random.integers(0, HOT, BATCH // 2), random.integers(0, KEYS, BATCH // 2)
        ids = random.permutation(np.concatenate([hot, cold]))
        yield ids, random.normal(size=(BATCH, DIM)).astype(np.float32)


def trained(ps: Any, spec: hps.TableSpec) -> tuple[Any, dict[str, int]]:
    table = ps.create_table(spec)
    table.lookup_or_insert(np.arange(KEYS))
    for ids, gradients in steps(spec.seed):
        table.apply_gradients(ids, gradients)
    stats = table.stats()
    return table.lookup(np.arange(KEYS)), stats


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rows_follow_the_rule_wherever_they_lie(name: str, tmp_path: Path) -> None:
    spec = hps.TableSpec("t", DIM, OPTIMIZERS[name], hps.Normal(std=0.1), seed=len(name))
    with hps.connect(f"local:{tmp_path}/large", dram="256MiB", nvme="512MiB") as ps:
        rows, _ = trained(ps, spec)
    # Of the numbers alone, without headers and index; a table may not have less.
    small = hps.TableSpec("t", DIM, OPTIMIZERS[name], hps.Normal(std=0.1), len(name), dram="1MiB")
    with hps.connect(f"local:{tmp_path}/small", dram="8MiB", nvme="512MiB") as ps:
        tiered, stats = trained(ps, small)
    assert stats["evictions"] > 1000
    assert stats["device_reads"] > 1000
    assert stats["rows_poisoned"] == 0
    np.testing.assert_array_equal(tiered, rows)
    oracle = Rule(spec.optimizer, spec.initial_rows(np.arange(KEYS)))
    for ids, gradients in steps(spec.seed):
        oracle.push(ids, gradients)
    assert np.abs(rows - oracle.x).max() <= 2e-5 * np.abs(oracle.x).max()
    assert (np.abs(rows).sum(axis=1) == 0).sum() == (np.abs(oracle.x).sum(axis=1) == 0).sum()


@pytest.mark.parametrize("name", ["GroupAdam", "Lamb", "SparseGroupFtrl"])
def test_shards_change_no_bit(name: str, tmp_path: Path) -> None:
    spec = hps.TableSpec("t", DIM, OPTIMIZERS[name], hps.Normal(std=0.1), seed=len(name))
    with hps.connect(f"local:{tmp_path}/one", dram="64MiB", nvme="256MiB") as ps:
        rows, _ = trained(ps, spec)
    with (
        ServerProcess(tmp_path / "a", "--shard", "0/2") as first,
        ServerProcess(tmp_path / "b", "--shard", "1/2") as second,
        hps.connect(f"{first.url},{second.url[6:]}") as ps,
    ):
        sharded, _ = trained(ps, spec)
        assert ps.table("t").spec.optimizer == spec.optimizer
    np.testing.assert_array_equal(sharded, rows)


def drive_out(table: Any, key: int) -> None:
    """Others are read until they are warmer and the row has left for NVMe."""
    others = np.arange(100, 40_100)
    for _ in range(200):
        if table.inspect([key])[0].tier == "nvme":
            return
        table.lookup_or_insert(others)
    raise AssertionError("it stays in DRAM")


def test_a_row_that_the_group_bound_zeroed_comes_back_from_zero(tmp_path: Path) -> None:
    """Its linear term goes on, in DRAM and on NVMe; the initial row is never seen again."""
    for optimizer in (hps.GroupAdam(0.1, l21=1.0), hps.SparseGroupFtrl(0.1, l21=1.0)):
        with hps.connect(f"local:{tmp_path}/{optimizer.KIND}", dram="8MiB", nvme="64MiB") as ps:
            spec = hps.TableSpec("t", 4, optimizer, hps.Constant(0.5), dram="1MiB")
            table, oracle = ps.create_table(spec), Rule(optimizer, np.full((1, 4), 0.5, "f4"))
            small, large = np.full((1, 4), 0.01, "f4"), np.full((1, 4), 1.0, "f4")
            norms = []
            for step, gradient in enumerate([small] * 3 + [large] * 30):
                if step in (3, 10, 20):
                    # It leaves while it is zero, and comes back to be changed.
                    drive_out(table, 7)
                table.apply_gradients([7], gradient)
                oracle.push(np.zeros(1, int), gradient)
                norms.append(float(np.abs(table.lookup([7])).sum()))
                np.testing.assert_allclose(table.lookup([7]), oracle.x, rtol=1e-4, atol=1e-6)
            assert norms[2] == 0, norms
            assert norms[-1] > 0, norms
            assert table.lookup([7], return_found=True)[1].all(), "zeroed is not removed"


def test_torch_steps_alike(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    pairs = [
        (hps.SGD(0.1, weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.1)),
        (hps.Momentum(0.1), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (
            hps.Momentum(0.1, nesterov=True, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        ),
        (
            hps.Adagrad(0.1, 0.2, weight_decay=0.1),
            lambda p: torch.optim.Adagrad(p, 0.1, initial_accumulator_value=0.2, weight_decay=0.1),
        ),
        (hps.RMSprop(0.01), lambda p: torch.optim.RMSprop(p, 0.01)),
        (hps.Adam(0.01, weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.01, weight_decay=0.1)),
        (hps.AdamW(0.01), lambda p: torch.optim.AdamW(p, 0.01)),
        (hps.AMSGrad(0.01), lambda p: torch.optim.Adam(p, 0.01, amsgrad=True)),
        (hps.RAdam(0.01), lambda p: torch.optim.RAdam(p, 0.01)),
        (
            hps.RAdam(0.01, weight_decay=0.1),
            lambda p: torch.optim.RAdam(p, 0.01, weight_decay=0.1),
        ),
    ]
    random = np.random.default_rng(1)
    with hps.connect(f"local:{tmp_path}", dram="8MiB", nvme="64MiB") as ps:
        for n, (optimizer, make) in enumerate(pairs):
            table = ps.create_table(hps.TableSpec(f"t{n}", 17, optimizer, hps.Normal(std=0.5)))
            weight = torch.nn.Parameter(torch.tensor(table.lookup_or_insert([3])))
            theirs = make([weight])
            for _ in range(200):
                gradient = random.normal(size=(1, 17)).astype(np.float32)
                table.apply_gradients([3], gradient)
                weight.grad = torch.tensor(gradient)
                theirs.step()
            ours = table.lookup([3])
            np.testing.assert_allclose(
                ours, weight.detach().numpy(), rtol=1e-5, atol=1e-6, err_msg=repr(optimizer)
            )


def test_keras_ftrl_steps_alike(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras", reason="keras is not installed")
    optimizer = hps.FTRL(0.05, l1=0.01, l2=0.1)
    theirs = keras.optimizers.Ftrl(
        0.05, l1_regularization_strength=0.01, l2_regularization_strength=0.1
    )
    random = np.random.default_rng(1)
    with hps.connect(f"local:{tmp_path}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.create_table(hps.TableSpec("t", 8, optimizer, hps.Normal(std=0.5)))
        weight = keras.Variable(table.lookup_or_insert([3]))
        for _ in range(100):
            gradient = random.normal(size=(1, 8)).astype(np.float32)
            table.apply_gradients([3], gradient)
            theirs.apply([gradient], [weight])
        np.testing.assert_allclose(table.lookup([3]), np.asarray(weight), rtol=1e-4, atol=1e-6)


def test_settings_of_the_stored_table_win(tmp_path: Path) -> None:
    with hps.connect(f"local:{tmp_path}", dram="8MiB", nvme="64MiB") as ps:
        made = hps.TableSpec("t", 4, hps.AdamW(0.01, (0.8, 0.99), clip_norm=1.0))
        ps.create_table(made)
        asked = hps.TableSpec("t", 4, hps.AdamW(0.01, weight_decay=0.5))
        with pytest.warns(UserWarning, match="the stored value stays") as warned:
            opened = ps.create_table(asked)
        texts = " ".join(str(warning.message) for warning in warned)
        assert "weight_decay" in texts
        assert opened.spec == made
        with pytest.raises(hps.TableMismatchError, match="optimizer"):
            ps.create_table(hps.TableSpec("t", 4, hps.Adam(0.01, (0.8, 0.99))))
        ps.create_table(hps.TableSpec("a", 4, hps.FTRL(0.1)))
        with pytest.raises(hps.TableMismatchError, match="initial_accumulator"):
            ps.create_table(hps.TableSpec("a", 4, hps.FTRL(0.1, 0.5)))
        with pytest.raises(hps.BadInputError, match=r"learning_rate.*divides"):
            ps.table("a").set_learning_rate(0.0)
        with pytest.raises(hps.BadInputError, match=r"dim.*16368"):
            ps.create_table(hps.TableSpec("b", 4096, hps.GroupAdam()))
    with hps.connect(f"local:{tmp_path}", dram="8MiB", nvme="64MiB") as ps:
        assert ps.table("t").spec == made
