"""The dense part of three click models over vectors that any embedding source may serve.

A model names its tables and their dims, says which columns look up which table, and turns the
vectors into logits. It holds no embedding, so that plain torch and hybridps train the very same
model. Plain columns (singles) reach every part; crossed columns stay out of the deep network,
which they would widen by thousands of inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hybridps.demo.datasets import Dataset

HIDDEN = (256, 128)


class ClickModel(nn.Module):
    """What the training loop knows of a model.

    Args:
        dataset: gives the number of columns and dense features.
        dim: floats of one id's vector, without its first-order weight.
    """

    def __init__(self, dataset: Dataset, dim: int) -> None:
        super().__init__()
        self.columns = dataset.keys.shape[1]
        self.singles = dataset.singles
        self.dense = dataset.dense.shape[1]
        self.dim = dim
        self.bias = nn.Parameter(torch.zeros(1))

    def dims(self) -> dict[str, int]:
        """Floats of a row of each table the model needs."""
        raise NotImplementedError

    def ids(self, keys: Tensor) -> dict[str, Tensor]:
        """Ids to look up in each table, of int64[n, columns]."""
        raise NotImplementedError

    def forward(self, vectors: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        """float32[n] logits."""
        raise NotImplementedError


class DeepFM(ClickModel):
    """First order + factorisation machine over all columns + a network over the plain ones."""

    def __init__(self, dataset: Dataset, dim: int) -> None:
        super().__init__(dataset, dim)
        self.network = network(self.singles * dim)

    def dims(self) -> dict[str, int]:
        return {"features": self.dim + 1}  # the last float is the first-order weight

    def ids(self, keys: Tensor) -> dict[str, Tensor]:
        return {"features": keys}

    def forward(self, vectors: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        del dense
        rows = vectors["features"]
        x, first_order = rows[..., : self.dim], rows[..., self.dim].sum(1)
        total = x.sum(1)
        pairs = 0.5 * (total * total - (x * x).sum(1)).sum(1)
        deep = logit(self.network, x[:, : self.singles].flatten(1))
        return self.bias + first_order + pairs + deep


class WideDeep(ClickModel):
    """A weight for every column, crosses above all, beside a network over the plain ones."""

    def __init__(self, dataset: Dataset, dim: int) -> None:
        super().__init__(dataset, dim)
        self.network = network(self.singles * dim + self.dense)

    def dims(self) -> dict[str, int]:
        return {"wide": 1, "deep": self.dim}

    def ids(self, keys: Tensor) -> dict[str, Tensor]:
        return {"wide": keys, "deep": keys[:, : self.singles]}

    def forward(self, vectors: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        deep = torch.cat([vectors["deep"].flatten(1), dense], dim=1)
        return self.bias + vectors["wide"].flatten(1).sum(1) + logit(self.network, deep)


class DLRM(ClickModel):
    """Dot products between all plain columns, the dense features and the sum of the crosses."""

    def __init__(self, dataset: Dataset, dim: int) -> None:
        super().__init__(dataset, dim)
        self.bottom = nn.Sequential(nn.Linear(self.dense, dim), nn.ReLU()) if self.dense else None
        vectors = self.singles + (self.columns > self.singles) + (self.dense > 0)
        pairs = torch.triu_indices(vectors, vectors, offset=1)
        self.left, self.right = pairs[0], pairs[1]
        self.network = network(pairs.shape[1] + (dim if self.dense else 0))

    def dims(self) -> dict[str, int]:
        return {"features": self.dim}

    def ids(self, keys: Tensor) -> dict[str, Tensor]:
        return {"features": keys}

    def forward(self, vectors: Mapping[str, Tensor], dense: Tensor) -> Tensor:
        rows = vectors["features"]
        parts = [rows[:, : self.singles]]
        if self.columns > self.singles:
            parts.append(rows[:, self.singles :].sum(1, keepdim=True))
        bottom = self.bottom(dense) if self.bottom is not None else dense
        if self.bottom is not None:
            parts.append(bottom.unsqueeze(1))
        x = torch.cat(parts, dim=1)
        dots = torch.bmm(x, x.transpose(1, 2))[:, self.left, self.right]
        return self.bias + logit(self.network, torch.cat([dots, bottom], dim=1))


def network(inputs: int) -> nn.Sequential:
    """A multilayer perceptron with one logit."""
    first, second = HIDDEN
    return nn.Sequential(
        nn.Linear(inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(),
        nn.Linear(second, 1),
    )  # fmt: skip


def logit(layers: nn.Module, inputs: Tensor) -> Tensor:
    """float32[n] of float32[n, inputs]."""
    column: Tensor = layers(inputs)
    return column.squeeze(1)


MODELS: dict[str, type[ClickModel]] = {"deepfm": DeepFM, "dlrm": DLRM, "widedeep": WideDeep}


def build(name: str, dataset: Dataset, dim: int, seed: int) -> ClickModel:
    """A fresh model; the same seed gives the same dense weights."""
    torch.manual_seed(seed)
    return MODELS[name](dataset, dim)
