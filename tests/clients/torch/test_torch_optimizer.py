"""Goal: accumulation and AMP give torch's numbers. Method: the same loop beside torch's."""

import gc

import numpy as np
import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, EmbeddingCollection, Optimizer

import hybridps as hps


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


def test_an_optimizer_that_nobody_names_goes_on_until_it_is_closed(ps, spec):
    layer = Embedding(ps, spec())
    Optimizer(layer)
    gc.collect()
    layer(some_ids(0)).sum().backward()
    assert ps.pushes() == []
    older, newer = layer.accumulator, Optimizer(layer)
    older.close()
    layer(some_ids(0)).sum().backward()
    assert ps.pushes() == []
    newer.close()
    layer(some_ids(0)).sum().backward()
    assert len(ps.pushes()) == 1
    older.step()
    newer.step()
    assert len(ps.pushes()) == 1


def test_gradients_that_pile_up_are_told_of_once(ps, spec, monkeypatch):
    monkeypatch.setattr("hybridps_torch.optimizer.PILE_BYTES", 2000)
    layer = Embedding(ps, spec())
    sparse = Optimizer(layer)
    for _ in range(2):
        for _ in range(3):
            layer(some_ids(0)).sum().backward()
        with pytest.warns(UserWarning, match=r"'item'.*step\(\).*close\(\)"):
            layer(some_ids(0)).sum().backward()
        layer(some_ids(0)).sum().backward()
        sparse.zero_grad()


def rates(ps, *tables):
    return [ps.table(table).spec.optimizer.learning_rate for table in tables]


def test_schedulers_set_the_learning_rate_of_each_table(ps, spec):
    specs = {"a": spec("a", optimizer=hps.SGD(1.0)), "b": spec("b", optimizer=hps.SGD(0.5))}
    col = EmbeddingCollection(ps, specs)
    sparse = Optimizer(torch.nn.ModuleList([col, Embedding(ps, specs["a"])]))
    assert [(g["table"], g["lr"]) for g in sparse.param_groups] == [("a", 1.0), ("b", 0.5)]
    scheduler = torch.optim.lr_scheduler.StepLR(sparse, step_size=1, gamma=0.5)
    before = [ps.table(t).lookup([1]) for t in "ab"]
    for step in range(3):
        ids = torch.tensor([1])
        sum(v.sum() for v in col({"a": ids, "b": ids}).values()).backward()
        sparse.step()
        scheduler.step()
        assert rates(ps, "a", "b") == [0.5 ** (step + 1), 0.5 ** (step + 2)]
    moved = [spec(t).initial_rows([1]) - ps.table(t).lookup([1]) for t in "ab"]
    np.testing.assert_allclose(moved[0], 1.75, rtol=1e-6)
    np.testing.assert_allclose(moved[1], 0.875, rtol=1e-6)
    assert not any(rows.any() for rows in before)


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR", "ReduceLROnPlateau"])
def test_schedulers_of_every_kind(ps, spec, name):
    layer = Embedding(ps, spec(optimizer=hps.SGD(0.5)))
    sparse = Optimizer(layer)
    arguments = {
        "OneCycleLR": {"max_lr": 0.25, "total_steps": 10, "cycle_momentum": False},
        "CosineAnnealingLR": {"T_max": 10},
        "ReduceLROnPlateau": {"patience": 0, "factor": 0.25},
    }[name]
    scheduler = getattr(torch.optim.lr_scheduler, name)(sparse, **arguments)
    seen = set()
    for _ in range(4):
        layer(some_ids(0)).sum().backward()
        sparse.step()
        scheduler.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        (rate,) = rates(ps, "item")
        assert rate == pytest.approx(sparse.param_groups[0]["lr"])
        seen.add(rate)
    assert len(seen) > 2


def test_a_rate_that_a_table_refuses_changes_nothing(ps, spec):
    sparse = Optimizer(Embedding(ps, spec(optimizer=hps.SGD(0.5))))
    with pytest.raises(ValueError, match="learning_rate"):
        sparse.param_groups[0]["lr"] = -1.0
    assert sparse.param_groups[0]["lr"] == 0.5
    sparse.param_groups[0].update(lr=0.25)
    sparse.step()
    assert rates(ps, "item") == [0.25]


def test_state_keeps_the_learning_rate(ps, spec):
    layer = Embedding(ps, spec(optimizer=hps.SGD(0.5)))
    sparse = Optimizer(layer)
    torch.optim.lr_scheduler.StepLR(sparse, 1)
    state = sparse.state_dict()
    assert state["param_groups"] == [{"lr": 0.5, "table": "item", "initial_lr": 0.5}]
    sparse.param_groups[0]["lr"] = 0.125
    Optimizer(layer).load_state_dict(state)
    assert rates(ps, "item") == [0.5]
    ps.table("item").set_learning_rate(0.25)
    sparse.load_state_dict(state)
    assert rates(ps, "item") == [0.5]


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
