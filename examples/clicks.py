"""A click log for the examples: hashed ids of several columns and whether the user clicked.

Every id has a hidden weight; a click is likely where the weights of a sample's ids are high.
"""

import numpy as np

COLUMNS = ("user", "item", "shop", "hour")
VOCABULARY = (2000, 500, 50, 24)
DENSE = ("log_price", "rating")


def clicks(samples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """int64[samples, columns] ids, a few of which are frequent, and float32[samples] labels."""
    random = np.random.default_rng(seed)
    hidden = np.random.default_rng(1)
    logits = np.full(samples, -1.0)
    ids = np.empty((samples, len(COLUMNS)), np.int64)
    for column, size in enumerate(VOCABULARY):
        code = (size * random.random(samples) ** 2).astype(np.int64)
        logits += hidden.normal(0, 1, size)[code]
        # One key space for all columns: each has numbers of its own in it.
        ids[:, column] = (column + 1 << 40) + code
    label = random.random(samples) < 1 / (1 + np.exp(-logits))
    return ids, label.astype(np.float32)


def dense_of(ids: np.ndarray) -> np.ndarray:
    """float32[samples, features]: what is known of each sample's item beside its id."""
    known = np.random.default_rng(2).normal(size=(VOCABULARY[1], len(DENSE)))
    item = ids[:, COLUMNS.index("item")] & (1 << 40) - 1
    return known[item].astype(np.float32)


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve of scores without ties."""
    rank = np.empty(len(score))
    rank[np.argsort(score)] = np.arange(1, len(score) + 1)
    clicked = label > 0
    hits, misses = clicked.sum(), (~clicked).sum()
    return float((rank[clicked].sum() - hits * (hits + 1) / 2) / (hits * misses))
