"""A click log of any size whose truth is known: the best possible AUC can be computed.

Every id carries a hidden weight and a hidden vector; a click is drawn from a factorisation
machine over them. Both are pure functions of the id, so that a log of a billion ids needs no
memory of its own. Ids of each feature follow Zipf's law with exponent 1.05.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hybridps.demo.datasets import Dataset, Keys, mix

FEATURES = 26
EXPONENT = 1.05
RANK = 4
BIAS, FIRST_ORDER, PAIRS = -1.6, 1.1, 0.6
SMALLEST, LARGEST = 8, 300_000  # vocabularies grow geometrically between these proportions
CALIBRATION_SAMPLES = 20_000

Doubles: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class PlantedLog:
    """An endless log over `ids` distinct ids; chunk c is a pure function of (seed, c)."""

    ids: int
    seed: int = 11

    @property
    def vocabularies(self) -> NDArray[np.int64]:
        """Distinct ids of each feature; they sum to `ids`, to rounding."""
        shape = np.geomspace(SMALLEST, LARGEST, FEATURES)
        sizes: NDArray[np.int64] = np.maximum(2, shape * self.ids / shape.sum()).astype(np.int64)
        sizes[-1] = max(2, self.ids - int(sizes[:-1].sum()))
        return sizes

    def chunk(self, number: int, samples: int) -> tuple[Keys, NDArray[np.float32], Doubles]:
        """(keys uint64[n, 26], clicks float32[n], click probabilities float64[n])."""
        random = np.random.default_rng((self.seed, number))
        ids = ids_of(zipf(random.random((samples, FEATURES)), self.vocabularies))
        probability = self._probability(ids)
        clicks = (random.random(samples) < probability).astype(np.float32)
        return mix(ids), clicks, probability

    def dataset(self, samples: int, test: int) -> Dataset:
        """`samples` to train on, then `test` to test on, with the Bayes AUC of the test part."""
        keys, label, probability = self.chunk(0, samples + test)
        is_train = np.arange(samples + test) < samples
        bayes = auc(label[samples:], probability[samples:])
        dense = np.zeros((samples + test, 0), np.float32)
        return Dataset("planted", keys, FEATURES, dense, label, is_train, 0.05, bayes)

    def all_keys(self, batch: int) -> Iterator[Keys]:
        """Every key of the log once, in arrays of at most `batch`, rare ones first."""
        for feature, size in enumerate(self.vocabularies):
            for end in range(int(size), 0, -batch):
                ranks = np.arange(max(0, end - batch), end, dtype=np.uint64)
                yield mix(ranks | np.uint64((feature + 1) << 40))

    def _probability(self, ids: Keys) -> Doubles:
        first, pairs = hidden_terms(ids)
        first_mean, first_spread, pairs_mean, pairs_spread = self._moments()
        logit = BIAS + FIRST_ORDER * (first - first_mean) / first_spread
        logit += PAIRS * (pairs - pairs_mean) / pairs_spread
        return np.asarray(1 / (1 + np.exp(-logit)))

    def _moments(self) -> tuple[float, float, float, float]:
        """Mean and spread of both terms, the same for every chunk."""
        random = np.random.default_rng((self.seed, 2**32))
        uniform = random.random((CALIBRATION_SAMPLES, FEATURES))
        first, pairs = hidden_terms(ids_of(zipf(uniform, self.vocabularies)))
        return float(first.mean()), float(first.std()), float(pairs.mean()), float(pairs.std())


def zipf(uniform: Doubles, sizes: NDArray[np.int64]) -> Keys:
    """Ranks from 0, by the inverse of the continuous bounded Zipf distribution: no table."""
    tail = 1.0 - EXPONENT
    top = (sizes.astype(np.float64) + 1.0) ** tail
    ranks = (1.0 + uniform * (top - 1.0)) ** (1.0 / tail)
    return np.minimum(ranks.astype(np.int64) - 1, sizes - 1).astype(np.uint64)


def ids_of(ranks: Keys) -> Keys:
    """Ranks with the number of their feature above them."""
    return ranks | (np.arange(1, FEATURES + 1, dtype=np.uint64) << np.uint64(40))


def hidden_terms(ids: Keys) -> tuple[Doubles, Doubles]:
    """(first order, rank-4 pairs) of each sample: sums over its ids' hidden weights."""
    first = gaussian(ids, 0).sum(axis=1)
    pairs = np.zeros(len(ids))
    for r in range(1, RANK + 1):
        x = gaussian(ids, r)
        pairs += 0.5 * (x.sum(axis=1) ** 2 - (x * x).sum(axis=1))
    return first, pairs


def gaussian(ids: Keys, stream: int) -> Doubles:
    """A nearly normal number of each (id, stream): four 16-bit uniforms, centred and scaled."""
    bits = mix(ids ^ np.uint64((stream + 1) * 0xD1B54A32D192ED03 % 2**64))
    parts = np.ascontiguousarray(bits).view(np.uint16).reshape(*ids.shape, 4)
    centred = parts.sum(axis=-1, dtype=np.float64) / 65536.0 - 2.0
    return np.asarray(centred * np.sqrt(3.0))


def auc(label: NDArray[np.floating], score: NDArray[np.floating]) -> float:
    """Area under the ROC curve; ties share their mean rank. nan when one class is absent."""
    order = np.argsort(score, kind="stable")
    ordered, positive = score[order], label[order] > 0
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    ends = np.concatenate((starts[1:], [len(ordered)]))
    ranks = np.repeat((starts + ends + 1) / 2.0, ends - starts)
    p = int(positive.sum())
    n = len(ordered) - p
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n)) if p and n else float("nan")
