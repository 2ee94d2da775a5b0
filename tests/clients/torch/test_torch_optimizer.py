"""Goal: accumulation and AMP give torch's numbers. Method: the same loop beside torch's."""

import gc

import numpy as np
import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, EmbeddingCollection, Optimizer


def some_ids(step):
    return torch.randint(12, (5, 4), generator=torch.Generator().manual_seed(step))


def test_accumulation(ps, spec, reference, same_rows, loss_of):
    layer, ref = Embedding(ps, spec()), reference(spec(), 12)
    sparse = Optimizer(layer)
    for step in range(4):
        sparse.zero_grad()
        for part in range(3):
            ids = some_ids(3 * step + part)
            (loss_of(layer(ids), part) / 3).backward()
            (loss_of(ref.embedding(ids), part) / 3).backward()
        assert len(ps.pushes()) == step
        sparse.step()
        ref.step()
    assert len(ps.pushes()) == 4
    same_rows("item", ref)


def test_one_push_for_all_layers(ps, spec):
    model = torch.nn.ModuleDict(
        {
            "bag": EmbeddingBag(ps, spec("a")),
            "col": EmbeddingCollection(ps, {"x": spec("a"), "y": spec("b")}),
        }
    )
    sparse = Optimizer(model)
    model["bag"](some_ids(0)).sum().backward()
    sum(v.sum() for v in model["col"]({"x": some_ids(1), "y": some_ids(2)}).values()).backward()
    assert ps.pushes() == []
    sparse.step()
    (push,) = ps.pushes()
    assert {table: keys.size for table, (keys, _) in push.items()} == {"a": 40, "b": 20}
    sparse.step()
    assert len(ps.pushes()) == 1


def test_zero_grad_drops(ps, spec):
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)
    layer(some_ids(0)).sum().backward()
    sparse.zero_grad()
    sparse.step()
    assert ps.pushes() == []


def test_closure(ps, spec):
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)

    def closure():
        loss = layer(some_ids(0)).sum()
        loss.backward()
        return loss

    assert sparse.step(closure).item() == pytest.approx(spec().initial_rows(some_ids(0)).sum())
    assert len(ps.pushes()) == 1


def test_refused_step_keeps_the_gradients_until_zero_grad(ps, spec):
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)
    (layer(some_ids(0)) * float("inf")).sum().backward()
    for _ in range(2):
        with pytest.raises(ValueError, match="item"):
            sparse.step()
    sparse.zero_grad()
    sparse.step()


@pytest.mark.parametrize("unscale_first", [False, True])
def test_scaler_unscales_and_skips(ps, spec, reference, same_rows, loss_of, unscale_first):
    layer, ref = Embedding(ps, spec()), reference(spec(), 12)
    sparse = Optimizer(layer)
    ours, theirs = (
        torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2) for _ in range(2)
    )
    for step in range(6):
        ids = some_ids(step)
        factor = float("inf") if step == 2 else 1.0
        before = layer(ids).detach()
        for scaler, optimizer, vectors in (
            (ours, sparse, layer(ids)),
            (theirs, ref.optimizer, ref.embedding(ids)),
        ):
            optimizer.zero_grad()
            scaler.scale(loss_of(vectors, step) * factor).backward()
            if unscale_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        assert torch.equal(layer(ids), before) == (step == 2)
        assert ours.get_scale() == theirs.get_scale()
    assert len(ps.pushes()) == 5
    same_rows("item", ref)


def test_clipping_sees_the_gradients(ps, spec):
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)
    layer(torch.arange(4)).sum().backward()
    parameters = [p for group in sparse.param_groups for p in group["params"]]
    assert torch.nn.utils.clip_grad_norm_(parameters, 1.0).item() == pytest.approx(32**0.5)
    sparse.step()
    norm = np.linalg.norm(ps.pushes()[0]["item"][1])
    assert norm == pytest.approx(1.0, rel=1e-5)


def test_gradients_do_not_alias_what_the_user_holds(ps, spec):
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)
    vectors = layer(torch.arange(3))
    vectors.retain_grad()
    vectors.square().sum().backward()
    vectors.grad.zero_()
    sparse.step()
    np.testing.assert_allclose(ps.pushes()[0]["item"][1], 2 * vectors.detach().numpy())


def test_an_optimizer_that_is_gone_no_longer_accumulates(ps, spec):
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)
    layer(some_ids(0)).sum().backward()
    assert ps.pushes() == []
    del sparse
    gc.collect()
    layer(some_ids(0)).sum().backward()
    assert len(ps.pushes()) == 1


def test_state_and_wrong_model(ps, spec):
    sparse = Optimizer(Embedding(ps, spec()))
    state = sparse.state_dict()
    sparse.load_state_dict(state)
    with pytest.raises(ValueError, match="Linear has no layer"):
        Optimizer(torch.nn.Linear(2, 2))


def test_an_optimizer_made_between_forward_and_backward_counts(ps, spec):
    layer = Embedding(ps, spec())
    loss = layer(some_ids(0)).sum()
    sparse = Optimizer(layer)
    loss.backward()
    assert ps.pushes() == []
    sparse.step()
    assert len(ps.pushes()) == 1
