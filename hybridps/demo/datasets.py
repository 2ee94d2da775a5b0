"""Labelled data as one array of 64-bit keys: census, the `.npz` sets, Criteo text files.

Column c of a data set owns the keys mix((c + 1) << 40 | code), so that one table serves all
columns. Order is kept; a split by time is never shuffled across.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Codes: TypeAlias = NDArray[np.int64]
Keys: TypeAlias = NDArray[np.uint64]
Floats: TypeAlias = NDArray[np.float32]

CRITEO_NUMERIC = 13
CRITEO_CATEGORICAL = 26
TRAIN_SHARE = 0.8
# All 286 triples would make 441,000 ids of 377 columns and three times the work for the same story:
# these make 190,000 ids of 147 columns.
CENSUS_TRIPLES = (
    "age", "education", "occupation", "country", "hours", "workclass", "marital", "capital_gain",
)  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """Samples ready to train on; row i of every array is sample i."""

    name: str
    keys: Keys
    """uint64[n, columns]: the `singles` plain columns first, crossed columns after them."""
    singles: int
    dense: Floats
    """float32[n, d], d may be 0: log1p of the numeric columns."""
    label: Floats
    is_train: NDArray[np.bool_]
    rate: float = 0.02
    """Learning rate of the embeddings that suits a single pass over these data."""
    bayes_auc: float | None = None
    """What a perfect model would reach on the test part, when the data are planted."""

    @property
    def train(self) -> NDArray[np.int64]:
        """Positions of the training samples, in order."""
        return np.flatnonzero(self.is_train)

    @property
    def test(self) -> NDArray[np.int64]:
        """Positions of the test samples, in order."""
        return np.flatnonzero(~self.is_train)


def mix(x: Keys) -> Keys:
    """splitmix64's finaliser: spreads structured ids over all 64 bits, one to one."""
    with np.errstate(over="ignore"):
        z = x + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def column_keys(codes: Sequence[Codes]) -> Keys:
    """uint64[n, columns] of the code of each column."""
    columns = [
        mix(np.uint64((c + 1) << 40) ^ code.astype(np.uint64)) for c, code in enumerate(codes)
    ]
    return np.ascontiguousarray(np.stack(columns, axis=1))


def bins(numeric: NDArray[np.float64]) -> Codes:
    """Half-octave bins of a count; negative (missing) values share bin 0."""
    log = np.floor(np.log2(np.maximum(numeric, 0) + 1) * 2).astype(np.int64)
    return np.where(numeric < 0, 0, log + 1)


def dense_features(numeric: NDArray[np.float64]) -> Floats:
    """float32[n, d]: log1p of counts, negative (missing) values as 0."""
    return np.log1p(np.maximum(numeric, 0)).astype(np.float32)


def census() -> Dataset:
    """UCI Adult, with all pairs of its columns and triples of eight of them crossed."""
    source = resources.files("hybridps") / "data" / "census.npz"
    with source.open("rb") as file, np.load(file, allow_pickle=False) as z:
        return _census(dict(z))


def _census(z: dict[str, NDArray[np.generic]]) -> Dataset:
    numeric = z["numeric"].astype(np.float64)
    columns = {str(n): z["cat"][:, j].astype(np.int64) for j, n in enumerate(z["cat_names"])}
    for j, name in enumerate(z["numeric_names"]):
        # The sampling weight has nearly one value a person; all other numbers have few.
        if name != "fnlwgt":
            columns[str(name)] = numeric[:, j].astype(np.int64)
    codes = list(columns.values()) + list(crosses(columns))
    split = z["split"].astype(np.int64)
    label = z["label"].astype(np.float32)
    dense = dense_features(np.delete(numeric, 1, axis=1))
    return Dataset("census", column_keys(codes), len(columns), dense, label, split == 0, rate=0.01)


def crosses(columns: dict[str, Codes]) -> Iterator[Codes]:
    """Codes of all pairs, then of the triples; a code has 40 bits, so that columns do not meet."""
    chosen = [itertools.combinations(columns, 2), itertools.combinations(CENSUS_TRIPLES, 3)]
    for names in itertools.chain(*chosen):
        code = np.zeros(len(columns[names[0]]), np.uint64)
        for name in names:
            code = mix((code << np.uint64(1)) ^ mix(columns[name].astype(np.uint64)))
        yield (code >> np.uint64(24)).astype(np.int64)


def npz(path: Path) -> Dataset:
    """A set with `label` or `rating`, columns `dense numeric user item cat`, maybe `split`."""
    with np.load(path, allow_pickle=False) as file:
        z = dict(file)
    if "label" not in z and "rating" not in z:
        raise ValueError(f"{path}: neither label nor rating among {sorted(z)}")
    label = (z["label"] if "label" in z else z["rating"] >= 4).astype(np.float32)
    numeric = [z[n].reshape(len(label), -1).astype(np.float64) for n in ("dense", "numeric")
               if n in z]  # fmt: skip
    dense = np.concatenate(numeric, axis=1) if numeric else np.zeros((len(label), 0))
    codes = [bins(column) for column in dense.T]
    for name in ("user", "item", "cat", "feat"):
        if name in z:
            codes += list(z[name].astype(np.int64).reshape(len(label), -1).T + 1)
    if not codes:
        raise ValueError(f"{path}: no column of dense, numeric, user, item, cat among {sorted(z)}")
    keys, features = column_keys(codes), dense_features(dense)
    keep, is_train = split_of(z.get("split"), len(label))
    return Dataset(path.stem, keys[keep], len(codes), features[keep], label[keep], is_train[keep])


def split_of(
    split: NDArray[np.generic] | None, samples: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(kept samples, training samples): part 0 trains and the highest part tests; by time else."""
    if split is None:
        is_train = np.arange(samples) < int(samples * TRAIN_SHARE)
        return np.ones(samples, np.bool_), is_train
    part = split.astype(np.int64)
    return (part == 0) | (part == part.max()), part == 0


def criteo(path: Path) -> Dataset:
    """A Criteo file: label, 13 counts, 26 hexadecimal ids, tab-separated; `.gz` too."""
    labels: list[float] = []
    counts: list[list[float]] = []
    ids: list[list[int]] = []
    for cells in criteo_lines(path):
        labels.append(float(cells[0]))
        counts.append([float(c) if c else -1.0 for c in cells[1 : 1 + CRITEO_NUMERIC]])
        ids.append([int(c, 16) + 1 if c else 0 for c in cells[1 + CRITEO_NUMERIC :]])
    if not labels:
        raise ValueError(f"{path}: empty")
    dense = np.array(counts, np.float64)
    codes = [bins(c) for c in dense.T] + list(np.array(ids, np.int64).T)
    label = np.array(labels, np.float32)
    _, is_train = split_of(None, len(label))
    return Dataset(
        path.stem, column_keys(codes), len(codes), dense_features(dense), label, is_train
    )


def criteo_lines(path: Path) -> Iterator[list[str]]:
    """Cells of each line of a Criteo file."""
    width = 1 + CRITEO_NUMERIC + CRITEO_CATEGORICAL
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        for number, line in enumerate(lines, 1):
            cells = line.rstrip("\r\n").split("\t")
            if len(cells) != width:
                raise ValueError(f"{path}, line {number}: {len(cells)} cells where {width} belong")
            yield cells


def load(path: Path) -> Dataset:
    """The data set in this file, by its ending."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return npz(path) if path.suffix == ".npz" else criteo(path)
