"""Goal: the demonstration's own arithmetic is right. Method: small cases with known answers."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from hybridps.demo import command, datasets
from hybridps.demo.planted import FEATURES, PlantedLog, auc


def test_auc_of_perfect_reversed_and_tied_scores() -> None:
    label = np.array([0.0, 0.0, 1.0, 1.0])
    assert auc(label, np.array([1.0, 2.0, 3.0, 4.0])) == 1.0
    assert auc(label, np.array([4.0, 3.0, 2.0, 1.0])) == 0.0
    assert auc(label, np.array([1.0, 1.0, 1.0, 1.0])) == 0.5
    assert auc(label, np.array([1.0, 2.0, 2.0, 3.0])) == 0.875
    assert np.isnan(auc(np.ones(3), np.arange(3.0)))


def test_a_planted_chunk_is_a_pure_function_of_its_number() -> None:
    first, again = (PlantedLog(5_000, seed=4).chunk(3, 100) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = PlantedLog(5_000, seed=4).chunk(4, 100)
    assert not np.array_equal(first[0], other[0])


def test_a_planted_log_has_the_ids_it_says() -> None:
    log = PlantedLog(5_000)
    keys = np.concatenate(list(log.all_keys(512)))
    assert len(keys) == len(np.unique(keys)) == 5_000 == log.vocabularies.sum()
    assert np.isin(log.chunk(0, 2_000)[0], keys).all()


def test_planted_ids_follow_zipf() -> None:
    log = PlantedLog(50_000)
    column = log.chunk(0, 40_000)[0][:, FEATURES - 1]
    _, counts = np.unique(column, return_counts=True)
    top = np.sort(counts)[::-1]
    assert 1.6 < top[0] / top[1] < 2.6  # 2^1.05 = 2.07, to sampling and rounding
    assert top[0] / len(column) > 0.05


def test_the_planted_truth_beats_any_other_score() -> None:
    data = PlantedLog(2_000).dataset(10, 20_000)
    assert data.bayes_auc is not None
    assert 0.7 < data.bayes_auc < 0.9
    assert 0.15 < data.label.mean() < 0.35


def test_census_is_whole() -> None:
    data = datasets.census()
    assert len(data.label) == 48_842
    assert data.is_train.sum() == 32_561
    assert data.label.mean() == pytest.approx(0.2393, abs=1e-4)
    assert len(np.unique(data.keys)) > 190_000
    assert not np.isin(data.keys[:1000, 0], data.keys[:1000, 1]).any()  # columns do not share keys


def criteo_line(label: int, number: int) -> str:
    ids = [f"{number + c:08x}" if c else "" for c in range(26)]
    return "\t".join([str(label), "", *map(str, range(12)), *ids]) + "\n"


@pytest.mark.parametrize("name", ["day.txt", "day.gz"])
def test_criteo_text(tmp_path: Path, name: str) -> None:
    text = "".join(criteo_line(i % 2, i) for i in range(10))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    data = datasets.load(path)
    assert data.keys.shape == (10, 39)
    assert data.is_train.tolist() == [True] * 8 + [False] * 2
    assert data.dense[0, 0] == 0.0
    assert len(np.unique(data.keys[:, 13])) == 1  # a missing id is one key


def test_criteo_text_with_a_short_line_names_it(tmp_path: Path) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(criteo_line(1, 1) + "1\t2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="line 2: 2 cells where 40 belong"):
        datasets.load(path)


def test_npz_needs_labels_and_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, cat=np.zeros((3, 2), np.int64))
    with pytest.raises(ValueError, match="neither label nor rating"):
        datasets.load(path)
    np.savez(path, label=np.zeros(3))
    with pytest.raises(ValueError, match="no column"):
        datasets.load(path)


@pytest.mark.parametrize("flags", [["--dim", "0"], ["--share", "0"], ["--data", "absent.npz"]])
def test_bad_flags_are_refused_in_one_line(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    assert command.main(["--only", "accuracy", *flags]) == command.EXIT_BAD_INPUT
    assert capsys.readouterr().err.count("\n") == 1
