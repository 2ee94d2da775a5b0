"""Goal: saved, copied and mistaken layers behave. Method: round trips and refused calls."""

import copy
import json
import pickle

import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, EmbeddingCollection, Optimizer
from torch.utils.data import DataLoader

import hybridps as hps
from hybridps.errors import BadInputError, TableMismatchError

IDS = torch.tensor([1, 2, 2])


def test_state_dict_holds_names(ps, spec):
    model = torch.nn.Sequential(Embedding(ps, spec()), torch.nn.Linear(8, 1))
    state = model.state_dict()
    assert set(state) == {"0._extra_state", "1.weight", "1.bias"}
    # Plain data: nothing that a weights-only load would refuse.
    assert json.loads(json.dumps(state["0._extra_state"])) == {"tables": {"ids": "item"}}
    model.load_state_dict(state)
    other = torch.nn.Sequential(Embedding(ps, spec("user")), torch.nn.Linear(8, 1))
    with pytest.raises(TableMismatchError, match=r"'item'.*'user'"):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"1.weight": state["1.weight"], "1.bias": state["1.bias"]})


def test_deep_copy_shares_the_table_and_leaves_the_optimizer(ps, spec):
    model = torch.nn.Sequential(Embedding(ps, spec()), torch.nn.Linear(8, 1))
    sparse = Optimizer(model)
    clone = copy.deepcopy(model)
    assert clone[0].ps is ps
    assert clone[0].anchor is not model[0].anchor
    clone(IDS).sum().backward()
    assert len(ps.pushes()) == 1
    model(IDS).sum().backward()
    assert len(ps.pushes()) == 1
    sparse.step()
    assert len(ps.pushes()) == 2
    assert torch.equal(clone[0](IDS), model[0](IDS))


def test_pickled_layers_share_the_connection_of_their_process(ps, spec):
    model = torch.nn.ModuleList([Embedding(ps, spec("a")), EmbeddingBag(ps, spec("b"))])
    sparse = Optimizer(model)
    clones = pickle.loads(pickle.dumps(model))  # noqa: S301 - written on this line
    assert [layer.ps for layer in clones] == [ps, ps]
    clones[0](IDS).sum().backward()
    assert len(ps.pushes()) == 1
    assert sparse.param_groups[0]["params"] == []


def test_worker_of_a_local_store_is_refused_clearly(ps, spec):
    layer = Embedding(ps, spec()).eval()
    loader = DataLoader(range(4), num_workers=1, collate_fn=lambda b: layer(torch.tensor(b)))
    with pytest.raises(hps.UnavailableError, match="through a server"):
        list(loader)


def test_mistakes_name_the_table_and_read_nothing(ps, spec):
    emb, bag = Embedding(ps, spec()), EmbeddingBag(ps, spec())
    line = torch.arange(4)
    for message, call in [
        (r"torch.float32.*long\(\)", lambda: emb(torch.ones(3))),
        ("torch.bool", lambda: emb(torch.ones(3, dtype=torch.bool))),
        ("a list", lambda: emb([1, 2])),
        ("padding_idx", lambda: Embedding(ps, spec(), padding_idx=2**64)),
        ("mode is 'avg'", lambda: EmbeddingBag(ps, spec(), mode="avg")),
        ("without offsets", lambda: bag(line)),
        ("2-D ids", lambda: bag(line.view(2, 2), torch.tensor([0, 2]))),
        ("3 dimensions", lambda: bag(line.view(1, 2, 2))),
        ("ascend", lambda: bag(line, torch.tensor([1, 2]))),
        ("ascend", lambda: bag(line, torch.tensor([0, 5]))),
        ("ascend", lambda: bag(line, torch.tensor([0, 3, 2]))),
        ("1-D", lambda: bag(line, torch.tensor([[0, 2]]))),
        ('mode="sum"', lambda: bag(line.view(2, 2), per_sample_weights=torch.ones(2, 2))),
    ]:
        with pytest.raises(BadInputError, match=f"(?s)table 'item'.*{message}"):
            call()
    summed = EmbeddingBag(ps, spec(), mode="sum")
    with pytest.raises(BadInputError, match="shape"):
        summed(line.view(2, 2), per_sample_weights=torch.ones(4))
    with pytest.raises(BadInputError, match=r"'shop' is not in this collection.*'item'"):
        EmbeddingCollection(ps, {"item": spec()})({"shop": line})
    with pytest.raises(BadInputError, match="no features"):
        EmbeddingCollection(ps, {})
    assert ps.calls == []


def test_repr_names_the_table(ps, spec):
    assert repr(Embedding(ps, spec(), 3)) == "Embedding(table='item', dim=8, padding_idx=3)"
    assert repr(EmbeddingBag(ps, spec())) == "EmbeddingBag(table='item', dim=8, mode='mean')"
