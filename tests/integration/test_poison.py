"""Goal: no optimizer, no verb and no file ever leaves a number in a row, or in its slots, that is
not finite: what would is refused whole, or the row stays as it was and is counted.

Method: gradients that are not finite, that are huge, and that overflow slots alone; all numbers of
the table, slots included, are read through an export; other rows of the same push beside a table
that never met the poison.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps import _core
from hybridps.optimizers import OPTIMIZERS

DIM = 5
KEYS = np.arange(1, 9)
# Around the ends of float32: its square, its product with a rate, or its sum may overflow.
HUGE = (3.4e38, -3.4e38, 1e38, 2e19)
OPTIONS: dict[str, dict[str, float]] = {
    "plain": {},
    "decayed": {"weight_decay": 0.1},
    "clipped": {"clip_value": 1e30, "clip_norm": 1e25},
}


@pytest.fixture(scope="module")
def ps(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("poison")
    with hps.connect(f"local:{path}", dram="32MiB", nvme="128MiB") as ps:
        yield ps


def trained(ps: Any, name: str, optimizer: Any) -> Any:
    spec = hps.TableSpec(name, DIM, optimizer, hps.Normal(std=1), seed=5)
    table = ps.create_table(spec)
    for seed in range(3):
        table.apply_gradients(KEYS, gradients(seed))
    return table


def gradients(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(len(KEYS), DIM)).astype(np.float32)


def numbers(table: Any, folder: Path) -> dict[int, np.ndarray]:
    """Value and slots of each key."""
    path = folder / "numbers.npz"
    table.export_to(path, slots=True)
    with np.load(path, allow_pickle=False) as file:
        parts = [file["value"], *([file["slots"]] if "slots" in file else [])]
        return dict(zip(file["key"].tolist(), np.concatenate(parts, axis=1), strict=True))


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_huge_gradient_spoils_nothing(ps: Any, tmp_path: Path, kind: str, options: str) -> None:
    optimizer = OPTIMIZERS[kind](0.5, **OPTIONS[options])
    table = trained(ps, f"{kind}-{options}", optimizer)
    untouched = trained(ps, f"{kind}-{options}-beside", optimizer)
    poisoned = 0
    for seed, huge in enumerate((*HUGE, *HUGE), 10):
        before = numbers(table, tmp_path)
        given = gradients(seed)
        untouched.apply_gradients(KEYS[1:], given[1:])
        # All columns of the row, or its last one alone.
        given[0] = huge
        given[0, : seed % 2 * (DIM - 1)] = 0.5
        table.apply_gradients(KEYS, given)
        after = numbers(table, tmp_path)
        assert all(np.isfinite(row).all() for row in after.values()), huge
        counted = table.stats()["rows_poisoned"] - poisoned
        poisoned += counted
        # A step that was made may be too small for so large a number to show.
        assert counted == 0 or (counted == 1 and same(before[1], after[1]))
    assert poisoned > 0 or kind in {"lamb", "r_adam"} or options == "clipped"
    beside = numbers(untouched, tmp_path)
    for key in KEYS[1:].tolist():
        assert same(after[key], beside[key]), "what else the push named is as without it"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_is_not_finite_is_refused_whole(ps: Any, tmp_path: Path, kind: str) -> None:
    table = trained(ps, f"{kind}-refused", OPTIMIZERS[kind](0.5))
    before = numbers(table, tmp_path)
    for poison in (np.nan, np.inf, -np.inf):
        given = gradients(1)
        given[-1, -1] = poison
        for call in (table.apply_gradients, table.assign, table.scatter_add, table.scatter_min):
            with pytest.raises(hps.BadInputError, match=rf"key 8 hold .*{poison} at column 4"):
                call(KEYS, given)
    after = numbers(table, tmp_path)
    assert all(same(before[key], after[key]) for key in before)


def test_slots_that_are_not_finite_are_not_imported(ps: Any, tmp_path: Path) -> None:
    table = trained(ps, "imported", hps.Adam(0.5))
    path, forged = tmp_path / "table.npz", tmp_path / "forged.npz"
    table.export_to(path, slots=True)
    before = numbers(table, tmp_path)
    with np.load(path, allow_pickle=False) as file:
        columns = {name: file[name] for name in file.files}
    columns["slots"][3, 2] = np.inf
    np.savez(forged, **columns)
    with pytest.raises(hps.BadInputError, match=r"slots of key .* hold inf at column 2"):
        table.import_from(forged)
    after = numbers(table, tmp_path)
    assert all(same(before[key], after[key]) for key in before)


def test_the_engine_refuses_what_a_client_sends_unchecked(tmp_path: Path) -> None:
    """As a client of another make would: straight to the calls."""
    store = _core.Store(str(tmp_path), dram=8 << 20, nvme=64 << 20, durability="none", threads=1)
    spec = hps.TableSpec("t", DIM, hps.Adam(0.5), hps.Normal(std=1))
    table, _, _ = store.create_table(spec.to_json())
    store.attach(5, "")
    keys = KEYS.astype(np.uint64)
    bad = gradients(0)
    bad[2, 1] = np.nan
    width = _core.check_spec(spec.to_json()) + 2
    whole = np.zeros((len(keys), width), np.float32)
    whole[1, DIM + 3] = np.inf
    zeros = np.zeros((len(keys), DIM), np.float32)
    for call in (
        lambda: store.apply_gradients(5, 1, None, [(table, keys, bad)]),
        lambda: store.assign(5, 1, [(table, keys, bad)]),
        lambda: store.scatter(5, 1, 0, [(table, keys, bad)]),
        lambda: store.scatter(5, 1, 3, [(table, keys, zeros)]),
        lambda: store.scatter(5, 1, 6, [(table, keys, zeros)]),
        lambda: store.import_rows(5, 1, [(table, keys, whole)]),
        lambda: store.import_rows(5, 1, [(table, keys, whole[:, 1:].copy())]),
    ):
        with pytest.raises(hps.BadInputError):
            call()
    assert store.size(table) == 0
    store.close()
