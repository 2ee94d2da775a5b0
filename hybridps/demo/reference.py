"""Plain torch tables: what the same model trains on without a parameter server.

`nn.Embedding` needs dense row numbers, so the ids of the whole data set are numbered beforehand;
a parameter server never asks for that.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import hybridps as hps
from hybridps.demo.datasets import Dataset

# torch's Adagrad builds sparse tensors and then warns that it does not check what it built.
warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)


class TorchTables(nn.Module):
    """One sparse `nn.Embedding` for each spec, starting from the rows the specs give.

    Attributes:
        ids: int64[n, columns], the row numbers of every sample of the data set.
        optimizer: torch's own, over all tables.
    """

    def __init__(self, specs: Mapping[str, hps.TableSpec], dataset: Dataset) -> None:
        super().__init__()
        unique, inverse = np.unique(dataset.keys, return_inverse=True)
        self.ids: NDArray[np.int64] = inverse.reshape(dataset.keys.shape)
        self.trained = np.zeros(len(unique), np.bool_)
        self.trained[self.ids[dataset.train]] = True
        self.tables = nn.ModuleDict()
        for name, spec in specs.items():
            weight = torch.from_numpy(spec.initial_rows(unique))
            rows, dim = weight.shape
            self.tables[name] = nn.Embedding(rows, dim, sparse=True, _weight=weight)
        self.optimizer = torch_optimizer(next(iter(specs.values())), list(self.parameters()))

    def forward(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Vectors of each table's ids."""
        return {name: self.tables[name](rows) for name, rows in ids.items()}

    @torch.no_grad()
    def forget_untrained(self) -> None:
        """Zeroes rows that no training sample named: a served table answers zeros for them."""
        absent = torch.from_numpy(~self.trained)
        for table in self.tables.values():
            weight = cast("Tensor", table.weight)
            weight[absent] = 0.0


def torch_optimizer(spec: hps.TableSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """torch's counterpart of the spec's optimizer."""
    rule = spec.optimizer
    rate = float(rule.learning_rate)
    if isinstance(rule, hps.SGD):
        return torch.optim.SGD(parameters, lr=rate)
    if isinstance(rule, hps.Adagrad):
        return torch.optim.Adagrad(
            parameters, lr=rate, initial_accumulator_value=rule.initial_accumulator, eps=rule.eps
        )
    raise ValueError(f"{type(rule).__name__} has no lazy counterpart in torch")
