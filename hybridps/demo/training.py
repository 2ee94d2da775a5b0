"""The loop both sides share: same batches, same order, same dense optimizer.

A trainer does not know where its vectors come from. Plain torch brings a second optimizer for its
tables; a hybridps layer needs none, the gradients leave with the backward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import hybridps_torch
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import hybridps as hps
from hybridps.demo.datasets import Dataset
from hybridps.demo.models import ClickModel
from hybridps.demo.planted import auc

DENSE_LEARNING_RATE = 1e-3

Positions: TypeAlias = NDArray[np.int64]


class Trainer:
    """One model over one embedding source.

    Args:
        model: the dense part.
        tables: module from a dict of ids to a dict of vectors.
        ids: int64[n, columns]: the ids that `tables` understands, row i for sample i.
        dataset: labels and dense features.
        sparse: optimizer of the tables, if they need one.

    `look_ahead`: for how many coming batches rows are brought into DRAM while one trains.
    """

    def __init__(
        self,
        model: ClickModel,
        tables: nn.Module,
        ids: NDArray[np.int64],
        dataset: Dataset,
        sparse: torch.optim.Optimizer | None = None,
    ) -> None:
        self.model, self.tables, self.sparse = model, tables, sparse
        self.ids = torch.from_numpy(ids)
        self.label = torch.from_numpy(dataset.label)
        self.features = torch.from_numpy(dataset.dense)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=DENSE_LEARNING_RATE)
        self.loss = nn.BCEWithLogitsLoss()
        self.look_ahead = 0

    def step(self, positions: Positions) -> float:
        """Trains on the samples at these positions; returns their mean loss."""
        self.tables.train()
        at = torch.from_numpy(positions)
        loss = self.loss(self._logits(at), self.label[at])
        self.optimizer.zero_grad(set_to_none=True)
        if self.sparse is not None:
            self.sparse.zero_grad(set_to_none=True)
        loss.backward()
        if self.sparse is not None:
            self.sparse.step()
        self.optimizer.step()
        return float(loss.detach())

    def train(
        self, batches: Iterator[Positions], progress: Callable[[int], object] | None = None
    ) -> float:
        """Trains on every batch; returns the seconds it took."""
        start = time.perf_counter()
        source: Iterable[Positions] = batches
        if self.look_ahead:
            source = hybridps_torch.prefetch(batches, self.tables, self.look_ahead, self._batch_ids)
        for positions in source:
            self.step(positions)
            if progress is not None:
                progress(len(positions))
        return time.perf_counter() - start

    @torch.no_grad()
    def scores(self, positions: Positions, batch: int) -> NDArray[np.float32]:
        """float32[n] click probabilities; reads rows, creates none."""
        self.tables.eval()
        parts = [
            torch.sigmoid(self._logits(torch.from_numpy(positions[low : low + batch]))).numpy()
            for low in range(0, len(positions), batch)
        ]
        return np.concatenate(parts)

    def test_auc(self, dataset: Dataset, batch: int) -> float:
        """AUC over the test part."""
        return auc(dataset.label[dataset.test], self.scores(dataset.test, batch))

    def _batch_ids(self, at: Positions | Tensor) -> dict[str, Tensor]:
        return self.model.ids(self.ids[at])

    def _logits(self, at: Tensor) -> Tensor:
        vectors: Mapping[str, Tensor] = self.tables(self._batch_ids(at))
        logits: Tensor = self.model(vectors, self.features[at])
        return logits


def batches(positions: Positions, batch: int, epochs: int, seed: int) -> Iterator[Positions]:
    """Batches of shuffled positions, the last of a pass may be short."""
    random = np.random.default_rng(seed)
    for _ in range(epochs):
        order = random.permutation(positions)
        for low in range(0, len(order), batch):
            yield order[low : low + batch]


def specs(model: ClickModel, rate: float, seed: int) -> dict[str, hps.TableSpec]:
    """The tables of a model."""
    return {
        name: hps.TableSpec(
            name=name,
            dim=dim,
            optimizer=hps.Adagrad(learning_rate=rate),
            initializer=hps.Normal(std=0.01),
            seed=seed,
        )
        for name, dim in model.dims().items()
    }


def signed(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The same 64-bit patterns as torch's integer type."""
    return keys.view(np.int64)


def alternate(
    trainers: Sequence[Trainer],
    steps: Sequence[Positions],
    segment: int,
    progress: Callable[[int], object] | None = None,
    limit_s: float = math.inf,
) -> list[list[float]]:
    """Every trainer takes the same steps, in turns of `segment` steps; who goes first changes too.

    After `limit_s` seconds no further turn begins: a slow machine trains on less, all alike.

    Returns:
        For each trainer the seconds of each of its segments.
    """
    seconds: list[list[float]] = [[] for _ in trainers]
    end = time.perf_counter() + limit_s
    for turn, low in enumerate(range(0, len(steps), segment)):
        if time.perf_counter() > end:
            break
        order = range(len(trainers)) if turn % 2 == 0 else reversed(range(len(trainers)))
        for index in order:
            part = iter(steps[low : low + segment])
            seconds[index].append(trainers[index].train(part, progress))
    return seconds
