"""Goal: one push at the end of a pass, none where torch would not update. Method: count calls."""

import threading

import numpy as np
import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag
from hybridps_torch.gradients import Backward
from torch.utils.checkpoint import checkpoint

IDS = torch.tensor([1, 2, 2, 5])


class BoomError(Exception):
    pass


class Explodes(torch.autograd.Function):
    @staticmethod
    def forward(_, x):
        return x.clone()

    @staticmethod
    def backward(_, __):
        raise BoomError


def test_each_backward_call_pushes(ps, spec, reference, same_rows, loss_of):
    layer, ref = Embedding(ps, spec()), reference(spec(), 6)
    for call in range(3):
        loss_of(layer(IDS)).backward()
        assert len(ps.pushes()) == call + 1
        loss_of(ref.embedding(IDS)).backward()
        ref.step()
    same_rows("item", ref, present={1, 2, 5})


def test_retained_graph_pushes_again(ps, spec):
    vectors = Embedding(ps, spec())(IDS)
    loss = vectors.square().sum()
    loss.backward(retain_graph=True)
    loss.backward()
    first, second = ps.pushes()
    np.testing.assert_array_equal(first["item"][0], second["item"][0])
    np.testing.assert_array_equal(first["item"][1], second["item"][1])


def test_no_backward_no_push(ps, spec):
    layer = Embedding(ps, spec())
    layer(IDS)
    with torch.no_grad():
        assert not layer(IDS).requires_grad
    assert ps.verbs() == ["lookup_or_insert"] * 2


def test_frozen_detached_and_unused_branches_push_nothing(ps, spec):
    used, frozen, detached, unused = (Embedding(ps, spec(n)) for n in ("a", "b", "c", "d"))
    torch.nn.ModuleList([frozen]).requires_grad_(False)
    unused(IDS)
    loss = used(IDS).sum() + frozen(IDS).sum() + detached(IDS).detach().sum()
    loss.backward()
    (push,) = ps.pushes()
    assert set(push) == {"a"}


def test_gradient_of_something_else_pushes_nothing(ps, spec):
    weight = torch.ones(8, requires_grad=True)
    loss = (Embedding(ps, spec())(IDS) * weight).sum()
    torch.autograd.grad(loss, weight, retain_graph=True)
    assert ps.pushes() == []
    loss.backward()
    assert len(ps.pushes()) == 1


def test_output_may_be_changed_in_place(ps, spec):
    vectors = Embedding(ps, spec())(IDS)
    torch.nn.functional.relu_(vectors).sum().backward()
    rows = spec().initial_rows(IDS.numpy())
    np.testing.assert_array_equal(ps.pushes()[0]["item"][1], (rows > 0).astype(np.float32))


def test_failed_pass_leaves_nothing_behind(ps, spec):
    layer = Embedding(ps, spec())
    weight = torch.ones(8, requires_grad=True)
    early = layer(IDS)
    loss = (layer(IDS) * Explodes.apply(weight)).sum() + early.sum()
    with pytest.raises(BoomError):
        loss.backward()
    assert ps.pushes() == []
    assert len(Backward._running) == 0
    layer(torch.tensor([9])).sum().backward()
    (push,) = ps.pushes()
    assert push["item"][0].tolist() == [9]


def test_refused_push_raises_from_backward_with_its_own_class(ps, spec):
    layer = Embedding(ps, spec())
    before = layer(IDS)
    with pytest.raises(ValueError, match="item"):
        (layer(IDS) * float("nan")).sum().backward()
    assert torch.equal(layer(IDS), before)
    layer(IDS).sum().backward()
    assert not torch.equal(layer(IDS), before)


def test_second_derivative_through_the_rows(ps, spec):
    """A penalty on the gradient of the vectors works; one on that of the rows is refused."""
    layer = Embedding(ps, spec())
    vectors = layer(IDS)
    (slope,) = torch.autograd.grad(vectors.pow(3).sum(), vectors, create_graph=True)
    slope.sum().backward()
    rows = spec().initial_rows(IDS.numpy())
    np.testing.assert_allclose(ps.pushes()[0]["item"][1], 6 * rows, rtol=1e-6)
    slopes = torch.autograd.grad(layer(IDS).square().sum(), layer.parameters(), create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        sum(slope.sum() for slope in slopes).backward()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_segments_push_once(ps, spec, use_reentrant):
    layer = Embedding(ps, spec())
    scale = torch.ones(8, requires_grad=True)

    def segment(x):
        return (layer(IDS) * x).tanh()

    out = layer(IDS) + sum(checkpoint(segment, scale, use_reentrant=use_reentrant) for _ in "ab")
    out.sum().backward()
    (push,) = ps.pushes()
    assert push["item"][0].size == 3 * IDS.numel()
    assert len(Backward._running) == 0


def test_graph_made_within_a_pass_and_run_after_it(ps, spec):
    layer, later = Embedding(ps, spec()), []
    vectors = layer(IDS)
    vectors.register_hook(lambda _: later.append(enabled(layer, IDS)))
    vectors.sum().backward()
    assert len(ps.pushes()) == 1
    later[0].sum().backward()
    assert len(ps.pushes()) == 2


def enabled(layer, ids):
    with torch.enable_grad():
        return layer(ids)


def test_passes_of_many_threads_do_not_mix(ps, spec):
    layers = [Embedding(ps, spec(f"t{i}")) for i in range(4)]

    def train(layer):
        for _ in range(20):
            (layer(IDS).sum() + layer(IDS).sum()).backward()

    threads = [threading.Thread(target=train, args=(layer,)) for layer in layers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ps.pushes()) == 80
    assert all(len(push) == 1 for push in ps.pushes())
    assert all(len(keys) == 8 for push in ps.pushes() for keys, _ in push.values())


def test_eval_never_inserts_counts_or_pushes(ps, spec):
    layers = torch.nn.ModuleList([Embedding(ps, spec("a")), EmbeddingBag(ps, spec("b"))])
    layers.eval()
    weight = torch.ones(8, requires_grad=True)
    vectors, bags = layers[0](IDS), layers[1](IDS.view(2, 2))
    assert not vectors.any()
    assert not bags.any()
    ((vectors + bags.sum(0)) * weight).sum().backward()
    assert ps.verbs() == ["lookup"] * 2
    assert len(ps.table("a")) == len(ps.table("b")) == 0
