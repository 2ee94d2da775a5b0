"""Goal: what computes gradients without training trains nothing, what runs a layer twice trains it
once, and what works on all parameters sees nothing odd. Method: beside torch, counted calls."""

import numpy as np
import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, Optimizer
from torch.utils.checkpoint import checkpoint

import hybridps as hps

IDS = torch.tensor([1, 2, 2, 5])


def model_of(ps, spec, layer=Embedding):
    return torch.nn.Sequential(layer(ps, spec()), torch.nn.Linear(8, 1))


@pytest.mark.parametrize("with_optimizer", [False, True])
def test_autograd_grad_trains_nothing(ps, spec, with_optimizer):
    model = model_of(ps, spec)
    sparse = Optimizer(model) if with_optimizer else None
    loss = model(IDS).sum()
    everything, dense = list(model.parameters()), list(model[1].parameters())
    gradients = torch.autograd.grad(loss, everything, retain_graph=True)
    assert [g.shape for g in gradients] == [p.shape for p in everything]
    torch.autograd.grad(loss, dense, retain_graph=True)
    torch.autograd.grad(loss, everything, retain_graph=True, create_graph=True)
    loss.backward(inputs=dense, retain_graph=True)
    torch.autograd.functional.jacobian(lambda x: model[1](model[0](IDS) + x).sum(), torch.ones(8))
    if sparse is not None:
        sparse.step()
    assert ps.pushes() == []
    loss.backward(inputs=everything)
    if sparse is not None:
        sparse.step()
    (push,) = ps.pushes()
    assert push["item"][0].tolist() == IDS.tolist()


def test_gradients_of_one_layer_only(ps, spec):
    """A pass that accumulates into one anchor of two trains that layer alone."""
    one, two = Embedding(ps, spec("a")), Embedding(ps, spec("b"))
    (one(IDS) * two(IDS)).sum().backward(inputs=[two.anchor])
    (push,) = ps.pushes()
    assert set(push) == {"b"}


def test_a_frozen_layer_thaws(ps, spec):
    layer = Embedding(ps, spec())
    layer.requires_grad_(False)
    layer(IDS)
    layer.requires_grad_(True)
    layer(IDS).sum().backward()
    assert len(ps.pushes()) == 1


@pytest.mark.parametrize("replace", ["parameter", "computed", "double"])
def test_an_anchor_that_a_wrapper_replaced_still_trains(ps, spec, replace):
    model = model_of(ps, spec)
    model(IDS).sum().backward()
    weights = dict(model.named_parameters())
    if replace == "double":
        model.double().float()
        model(IDS).sum().backward()
    else:
        fresh = torch.nn.Parameter(torch.zeros(1))
        weights["0.anchor"] = fresh if replace == "parameter" else fresh * 2
        torch.func.functional_call(model, weights, (IDS,)).sum().backward()
    assert len(ps.pushes()) == 2


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("layer", [Embedding, EmbeddingBag])
def test_checkpointing_reads_counts_and_pushes_once(ps, spec, use_reentrant, layer):
    model, scale = model_of(ps, spec, layer), torch.ones((), requires_grad=True)
    ids = IDS.view(2, 2)

    def segment(x):
        return model(ids) * x

    checkpoint(segment, scale, use_reentrant=use_reentrant).sum().backward()
    assert ps.verbs() == ["lookup_or_insert", "lookup", "apply_gradients"]
    assert ps.pushes()[0]["item"][0].size == ids.numel()


def test_a_segment_runs_again_on_the_rows_it_had_although_they_are_gone(ps, spec):
    """As keys that are not admitted, or expired meanwhile: their rows are the initial ones."""
    layer, seen = Embedding(ps, spec()), []

    def segment(x):
        vectors = layer(IDS) * x
        seen.append(vectors.detach().clone())
        return vectors.tanh()

    out = checkpoint(segment, torch.ones(8, requires_grad=True), use_reentrant=False)
    ps.table("item").remove([2, 5])
    out.sum().backward()
    assert torch.equal(*seen)


@pytest.mark.parametrize("norm", [2.0, 1.0, 3.0, 0.5, 0.0, float("inf"), float("-inf")])
@pytest.mark.parametrize("foreach", [None, True, False])
def test_norms_of_all_parameters_are_those_of_the_dense_ones(ps, spec, norm, foreach):
    model = model_of(ps, spec)
    model(IDS).sum().backward()
    wanted = torch.nn.utils.clip_grad_norm_(model[1].parameters(), 1e9, norm, foreach=foreach)
    got = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9, norm, foreach=foreach)
    assert torch.equal(got, wanted)
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.1, foreach=foreach)


@pytest.mark.parametrize("rule", ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "Rprop"])
def test_any_dense_optimizer_over_all_parameters(ps, spec, rule):
    model = model_of(ps, spec)
    optimizer = getattr(torch.optim, rule)(model.parameters(), lr=0.1)
    for set_to_none in (True, False):
        optimizer.zero_grad(set_to_none=set_to_none)
        model(IDS).sum().backward()
        optimizer.step()
    assert len(ps.pushes()) == 2
    assert not model[0].anchor.any()


def test_parameters_as_one_vector_and_back(ps, spec):
    model = model_of(ps, spec)
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    assert vector.numel() == sum(p.numel() for p in model.parameters())
    torch.nn.utils.vector_to_parameters(vector, model.parameters())
    before = model(IDS)
    for parameter in model[0].parameters():
        torch.nn.init.normal_(parameter)
    assert torch.equal(model(IDS), before)


# The compiler looks at the gradients of all that enters a graph, and torch warns of that.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_compiled_models_break_the_graph_and_train_the_same(ps, spec, loss_of):
    def train(table, compiled):
        torch.manual_seed(0)
        layers = torch.nn.ModuleDict(
            {"one": Embedding(ps, spec(table), 5), "bag": EmbeddingBag(ps, spec(table))}
        )

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = layers

            def forward(self, ids):
                return (self.layers["one"](ids * 2) + self.layers["bag"](ids)[:, None]).tanh()

        model = torch.compile(Model(), backend="aot_eager") if compiled else Model()
        for step in range(3):
            loss_of(model(IDS.view(2, 2)), step).backward()
        model.eval()
        with torch.no_grad():
            vectors = model(IDS.view(2, 2))
        return vectors, ps.table(table).lookup(np.arange(12))

    plain, compiled = train("a", False), train("b", True)
    torch.testing.assert_close(plain[0], compiled[0])
    np.testing.assert_allclose(plain[1], compiled[1], rtol=1e-6)
    assert len(ps.pushes()) == 6


def test_pretrained_rows(ps, spec):
    layer = Embedding(ps, spec(optimizer=hps.SGD(1.0)), padding_idx=3)
    keys = np.arange(100_000, dtype=np.uint64) + 2**63
    rows = torch.randn(len(keys), 8)
    layer.load_rows(keys, rows)
    layer.eval()
    assert torch.equal(layer(torch.from_numpy(keys.view(np.int64))), rows)
    layer.load_rows(torch.arange(6).view(2, 3), torch.ones(2, 3, 8, dtype=torch.bfloat16))
    assert layer(torch.arange(6)).sum(1).tolist() == [8, 8, 8, 0, 8, 8]
    assert not ps.table("item").lookup([3], return_found=True)[1]
    layer.load_rows(["shoes"], np.full((1, 8), 2, np.float32))
    assert (ps.table("item").lookup("shoes") == 2).all()
    size = len(ps.table("item"))
    for bad, message in [
        (np.ones((2, 7), np.float32), r"shape \(2, 7\).*\(2, 8\)"),
        (np.full((2, 8), np.nan, np.float32), "NaN"),
        (np.ones((2, 8)), "float64"),
    ]:
        with pytest.raises(ValueError, match=message):
            layer.load_rows([201, 202], bad)
    assert len(ps.table("item")) == size
