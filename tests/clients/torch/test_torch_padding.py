"""Goal: padding reads as zeros, and no store ever hears of it. Method: every layer, every kind of
read, and every key that reaches the store."""

import numpy as np
import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, EmbeddingBagCollection, EmbeddingCollection
from hybridps_torch import Optimizer as SparseOptimizer
from torch.utils.checkpoint import checkpoint

PAD = -1
IDS = torch.tensor([[5, 6, PAD, PAD], [7, PAD, PAD, PAD], [PAD] * 4])


def layers(ps, spec):
    yield "embedding", Embedding(ps, spec("a"), PAD), lambda layer: layer(IDS)
    yield "bag", EmbeddingBag(ps, spec("b"), "sum", PAD), lambda layer: layer(IDS)
    col = EmbeddingCollection(ps, {"x": spec("c"), "y": spec("c")}, padding_idx=PAD)
    yield "collection", col, lambda layer: torch.cat(list(layer({"x": IDS, "y": IDS}).values()))
    bags = EmbeddingBagCollection(ps, {"x": spec("d"), "y": spec("d")}, "sum", padding_idx=PAD)
    yield "bags", bags, lambda layer: torch.cat(list(layer({"x": IDS, "y": IDS}).values()))


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_no_call_names_it(ps, spec, with_optimizer):
    for name, layer, read in layers(ps, spec):
        sparse = SparseOptimizer(layer) if with_optimizer else None
        ps.calls.clear()
        (read(layer) * 3).sum().backward()
        checkpoint(lambda: read(layer) * 2, use_reentrant=False).sum().backward()  # noqa: B023
        if sparse is not None:
            sparse.step()
        layer.eval()
        read(layer)
        assert len(ps.pushes()) == (1 if with_optimizer else 2)
        for verb, tables in ps.calls:
            for value in tables.values():
                keys, *gradients = value if verb == "apply_gradients" else (value,)
                assert PAD not in keys.tolist(), (name, verb)
                assert all(len(rows) == len(keys) for rows in gradients)
        table = next(iter(layer.tables.values()))
        assert set(np.concatenate(list(ps.table(table).keys())).tolist()) == {5, 6, 7}


def test_it_reads_as_zeros_also_where_a_row_is_stored(ps, spec):
    for name, layer, read in layers(ps, spec):
        table = ps.table(next(iter(layer.tables.values())))
        table.assign([PAD], np.ones((1, 8), np.float32))
        for training in (True, False):
            vectors = read(layer.train(training)).detach()
            if name in ("embedding", "collection"):
                zeros = vectors.reshape(-1, *IDS.shape, 8)[:, IDS == PAD]
            else:
                zeros = vectors.reshape(-1, 3, 8)[:, 2]
            assert not zeros.any(), (name, training)
        np.testing.assert_array_equal(table.lookup([PAD]), np.ones((1, 8)))


def test_a_collection_takes_one_padding_for_all_or_one_a_feature(ps, spec):
    specs = {"x": spec("a"), "y": spec("b")}
    col = EmbeddingCollection(ps, specs, padding_idx={"x": 5})
    vectors = col({"x": torch.tensor([5, 6]), "y": torch.tensor([5, 6])})
    assert not vectors["x"][0].any()
    assert vectors["x"][1].any()
    assert vectors["y"].any(1).all()
    with pytest.raises(ValueError, match="'z' is not in this collection"):
        EmbeddingCollection(ps, specs, padding_idx={"z": 5})


def test_rows_of_one_call_are_told_apart_where_only_some_features_have_padding(ps, spec):
    """Padding shifts where the rows of the features behind it lie."""
    names = [f"f{i}" for i in range(4)]
    col = EmbeddingCollection(ps, dict.fromkeys(names, spec("a")), padding_idx=PAD)
    ids = dict(zip(names, [IDS[0], torch.tensor([1, 2]), IDS, torch.tensor([3])], strict=True))
    vectors = col(ids)
    for name in names:
        wanted = torch.from_numpy(spec("a").initial_rows(ids[name].numpy()))
        wanted[ids[name] == PAD] = 0
        assert torch.equal(vectors[name], wanted)
