"""The layers against torch's own, on a store in this process, through a spy that counts calls."""

from importlib.util import find_spec

import numpy as np
import pytest
from support.spy import Spy

import hybridps as hps

if find_spec("torch") and find_spec("hybridps_torch"):
    import torch
    from torch.nn import functional

    # Said outright, or torch's own sparse Adagrad warns.
    torch.sparse.check_sparse_tensor_invariants.disable()
else:
    # Nothing here can run without the framework.
    collect_ignore_glob = ["test_*.py"]


class Reference:
    """A torch parameter with the rows that the table starts with, and torch's optimizer."""

    def __init__(self, spec, keys, padding_idx=None):
        self.weight = torch.nn.Parameter(torch.from_numpy(spec.initial_rows(range(keys))))
        if padding_idx is not None:
            # As nn.Embedding does.
            self.weight.data[padding_idx] = 0
        rule = getattr(torch.optim, type(spec.optimizer).__name__)
        self.optimizer = rule([self.weight], lr=spec.optimizer.learning_rate)

    def embedding(self, ids, padding_idx=None):
        return functional.embedding(ids, self.weight, padding_idx, sparse=True)

    def bag(self, ids, offsets=None, mode="mean", **options):
        sparse = mode != "max"
        return functional.embedding_bag(
            ids, self.weight, offsets, mode=mode, sparse=sparse, **options
        )

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


@pytest.fixture
def ps(tmp_path):
    with hps.connect(f"local:{tmp_path}/store", dram="64MiB") as store:
        yield Spy(store)


@pytest.fixture
def spec():
    """Spec by table name; Adagrad unless said otherwise."""

    def make(name="item", dim=8, optimizer=None):
        optimizer = optimizer or hps.Adagrad(learning_rate=0.1)
        return hps.TableSpec(
            name=name, dim=dim, optimizer=optimizer, initializer=hps.Normal(std=0.5), seed=7
        )

    return make


@pytest.fixture
def reference():
    return Reference


@pytest.fixture
def same_rows(ps):
    """Asserts that the table holds exactly what the reference learned, for every key it has."""

    def check(table, reference, present=None):
        keys = np.concatenate(list(ps.table(table).keys())).tolist()
        assert len(keys) == len(set(keys)) == len(ps.table(table))
        if present is not None:
            assert set(keys) == present
        rows = torch.from_numpy(ps.table(table).lookup(keys))
        torch.testing.assert_close(rows, reference.weight.detach()[keys], rtol=1e-6, atol=1e-7)

    return check


@pytest.fixture
def loss_of():
    """A loss whose gradient differs in every number: no two rows could be swapped unseen."""

    def loss(vectors, step=0):
        generator = torch.Generator().manual_seed(vectors.numel() + step)
        factors = torch.randn(vectors.shape, generator=generator)
        return (torch.tanh(vectors) * factors).sum()

    return loss
