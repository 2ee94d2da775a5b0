"""Goal: look-ahead warms and changes nothing else. Method: the same loop with and without."""

import threading

import pytest
import torch
from hybridps_torch import Embedding, EmbeddingCollection, prefetch
from torch.utils.data import DataLoader, TensorDataset


def data_set():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(50, (64, 3), generator=generator)
    return TensorDataset(ids, torch.rand(64, generator=generator))


def warmed(ps):
    return [tables for verb, tables in ps.calls if verb == "prefetch"]


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_identical(ps, spec, workers):
    def train(table, ahead):
        torch.manual_seed(3)
        layer = Embedding(ps, spec(table))
        loader = DataLoader(data_set(), 8, shuffle=True, num_workers=workers)
        losses = []
        for ids, target in prefetch(loader, layer) if ahead else loader:
            loss = (layer(ids).sum((1, 2)) - target).square().sum()
            loss.backward()
            losses.append(loss.item())
        return losses

    assert train("plain", False) == train("ahead", True)
    assert len(warmed(ps)) == 8
    assert set().union(*warmed(ps)) == {"ahead"}


def test_runs_depth_ahead_and_never_inserts(ps, spec):
    layer = Embedding(ps, spec())
    read = []
    enough = threading.Event()

    def batches():
        for i in range(6):
            read.append(i)
            if i == 3:
                enough.set()
            yield torch.tensor([i])

    loop = iter(prefetch(batches(), layer, depth=3))
    assert next(loop).tolist() == [0]
    assert enough.wait(10)
    loop.close()
    assert read == [0, 1, 2, 3]
    assert len(ps.table("item")) == 0
    assert [tables["item"].tolist() for tables in warmed(ps)][:3] == [[0], [1], [2]]


def test_finds_ids_by_feature_table_and_layer_name(ps, spec):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.shop = Embedding(ps, spec("s"))
            self.col = EmbeddingCollection(ps, {"item": spec("i"), "seen": spec("i")})

    one = torch.tensor([1])
    batch = ({"item": one, "seen": one + 1, "noise": one}, {"shop": one + 2}, one)
    assert len(list(prefetch([batch], Model()))) == 1
    (tables,) = warmed(ps)
    assert {t: k.tolist() for t, k in tables.items()} == {"i": [1, 2], "s": [3]}
    list(prefetch([one], Model(), ids=lambda batch: {"s": batch}))
    assert {t: k.tolist() for t, k in warmed(ps)[1].items()} == {"s": [1]}
    with pytest.raises(ValueError, match="no ids found in a batch of type Tensor"):
        list(prefetch([one], Model()))


def test_errors_of_the_loader_reach_the_loop(ps, spec):
    def batches():
        yield torch.tensor([1])
        raise OSError("disk gone")

    loop = iter(prefetch(batches(), Embedding(ps, spec())))
    next(loop)
    with pytest.raises(OSError, match="disk gone"):
        next(loop)


def test_passes_for_the_loader(ps, spec):
    loader = DataLoader(data_set(), 8)
    ahead = prefetch(loader, Embedding(ps, spec()))
    assert len(ahead) == 8
    assert ahead.dataset is loader.dataset
    assert len(list(ahead)) == len(list(ahead)) == 8


@pytest.mark.parametrize("depth", [0, -1, 1.5, True])
def test_depth_is_checked(ps, spec, depth):
    with pytest.raises(ValueError, match="depth"):
        prefetch([], Embedding(ps, spec()), depth)
