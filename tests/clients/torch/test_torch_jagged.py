"""Goal: jagged, nested and keyed ids give what the same ids give one by one. Method: beside plain
bags and rows, and a stand-in for TorchRec's tensors with the methods that are used."""

import itertools
from importlib.util import find_spec

import pytest
import torch
from hybridps_torch import (
    Embedding,
    EmbeddingBag,
    EmbeddingBagCollection,
    EmbeddingCollection,
    prefetch,
)

from hybridps.errors import BadInputError

# torch calls them a prototype.
pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")

VALUES = torch.tensor([1, 2, 2, 5, 7, 1])
OFFSETS = torch.tensor([0, 2, 2, 5])
ENDED = torch.tensor([0, 2, 2, 5, 6])
PARTS = [VALUES[a:b] for a, b in itertools.pairwise(ENDED)]


class Jagged:
    def __init__(self, values, offsets, weights=None):
        self._parts = values, offsets, weights

    def values(self):
        return self._parts[0]

    def offsets(self):
        return self._parts[1]

    def weights_or_none(self):
        return self._parts[2]


class Keyed:
    def __init__(self, **features):
        self._features = features

    def keys(self):
        return list(self._features)

    def to_dict(self):
        return dict(self._features)

    def offset_per_key(self):
        raise AssertionError

    def values(self):
        raise AssertionError

    offsets = weights_or_none = values


def nested(layout):
    return torch.nested.nested_tensor(PARTS, layout=layout)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 2])
def test_bags_of_any_form(ps, spec, loss_of, mode, padding_idx):
    plain = EmbeddingBag(ps, spec("plain"), mode, padding_idx)
    ended = EmbeddingBag(ps, spec("ended"), mode, padding_idx, include_last_offset=True)
    layer = EmbeddingBag(ps, spec("any"), mode, padding_idx)
    wanted = plain(VALUES, OFFSETS)
    loss_of(wanted).backward()
    pushed = ps.pushes()[0]["plain"]
    for name, bags in {
        "pair": layer((VALUES, OFFSETS)),
        "list": layer([VALUES, OFFSETS]),
        "ended": ended((VALUES, ENDED)),
        "jagged": layer(nested(torch.jagged)),
        "strided": layer(nested(torch.strided)),
        "torchrec": layer(Jagged(VALUES, ENDED)),
        "keyed": layer(Keyed(item=Jagged(VALUES, ENDED))),
    }.items():
        assert torch.equal(bags, wanted), name
        ps.calls.clear()
        loss_of(bags).backward()
        ((keys, gradients),) = ps.pushes()[0].values()
        assert keys.tolist() == pushed[0].tolist(), name
        assert (gradients == pushed[1]).all(), name
        break_rows = layer.ps.table(ended.table if name == "ended" else "any")
        break_rows.remove(range(10))
        break_rows.lookup_or_insert(range(10))


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_rows_of_nested_ids_are_nested(ps, spec, layout):
    layer = Embedding(ps, spec(), padding_idx=7)
    flat = layer(VALUES)
    rows = layer(nested(layout))
    assert rows.is_nested
    parts = rows.unbind()
    assert [len(part) for part in parts] == [2, 0, 3, 1]
    assert torch.equal(torch.cat(list(parts)), flat)
    torch.cat([part * (1 + i) for i, part in enumerate(parts)]).sum().backward()
    keys, gradients = ps.pushes()[0]["item"]
    assert keys.tolist() == [1, 2, 2, 5, 1]
    assert gradients[:, 0].tolist() == [1, 1, 3, 3, 4]


def test_rows_of_jagged_ids_are_a_row_a_value(ps, spec):
    layer = Embedding(ps, spec())
    flat = layer(VALUES)
    assert torch.equal(layer((VALUES, OFFSETS)), flat)
    assert torch.equal(layer(Keyed(item=Jagged(VALUES, ENDED))), flat)


def test_collections_of_any_form(ps, spec):
    specs = {"item": spec("i"), "user": spec("u", dim=3), "seen": spec("i")}
    bags = EmbeddingBagCollection(ps, specs, mode="sum", padding_idx=5)
    rows = EmbeddingCollection(ps, specs)
    mixed = {"item": (VALUES, OFFSETS), "user": nested(torch.jagged), "seen": VALUES.view(2, 3)}
    keyed = Keyed(item=Jagged(VALUES, ENDED), user=Jagged(VALUES, ENDED))
    ps.calls.clear()
    pooled = bags(mixed)
    sum(v.sum() for v in pooled.values()).backward()
    assert ps.verbs() == ["lookup_or_insert", "apply_gradients"]
    assert {f: tuple(v.shape) for f, v in pooled.items()} == {
        "item": (4, 8), "user": (4, 3), "seen": (2, 8)
    }  # fmt: skip
    bags.eval()
    single = EmbeddingBag(ps, spec("i"), "sum", padding_idx=5).eval()
    again = bags(keyed)
    assert torch.equal(again["item"], single(VALUES, OFFSETS))
    assert set(again) == {"item", "user"}
    assert set(rows(keyed)) == {"item", "user"}
    assert rows(mixed)["user"].is_nested
    assert repr(bags).endswith("mode='sum')")


def test_weights_of_keyed_ids(ps, spec):
    weights = torch.rand(6)
    bags = EmbeddingBagCollection(ps, {"item": spec()}, mode="sum")
    wanted = bags({"item": (VALUES, OFFSETS)}, {"item": weights})["item"]
    got = bags(Keyed(item=Jagged(VALUES, ENDED, weights)))["item"]
    assert torch.equal(got, wanted)
    assert not torch.equal(got, bags({"item": (VALUES, OFFSETS)})["item"])


def test_look_ahead_finds_ids_of_any_form(ps, spec):
    specs = {"item": spec("i"), "user": spec("u")}
    model = EmbeddingBagCollection(ps, specs)
    batches = [
        ({"item": (VALUES, OFFSETS), "user": nested(torch.jagged)}, torch.ones(4)),
        (Keyed(item=Jagged(VALUES, ENDED), user=Jagged(VALUES, ENDED)), torch.ones(4)),
    ]
    assert len(list(prefetch(batches, model))) == 2
    warmed = [tables for verb, tables in ps.calls if verb == "prefetch"]
    assert [{t: k.tolist() for t, k in w.items()} for w in warmed] == [
        {"i": VALUES.tolist(), "u": VALUES.tolist()}
    ] * 2
    ps.calls.clear()
    list(prefetch([((VALUES, OFFSETS), torch.ones(4))], EmbeddingBag(ps, spec("i"))))
    assert ps.calls[0][1]["i"].tolist() == VALUES.tolist()


def test_mistakes_are_named(ps, spec):
    bag, emb = EmbeddingBag(ps, spec()), Embedding(ps, spec())
    two = Keyed(a=Jagged(VALUES, ENDED), b=Jagged(VALUES, ENDED))
    for message, call in [
        ("a tuple", lambda: emb((VALUES, [0]))),
        ("a tuple", lambda: emb((VALUES, OFFSETS, OFFSETS))),
        ("twice", lambda: bag((VALUES, OFFSETS), OFFSETS)),
        ("2 dimensions", lambda: bag((VALUES.view(2, 3), OFFSETS))),
        ("ascend", lambda: bag((VALUES, torch.tensor([0, 9])))),
        ("ascend", lambda: bag(Jagged(VALUES, torch.tensor([0, 9])))),
        (r"keys \['a', 'b'\].*collection", lambda: bag(two)),
        ("3 dimensions", lambda: bag(torch.nested.nested_tensor([torch.ones(1, 1).long()]))),
        ('mode="sum"', lambda: bag(Jagged(VALUES, ENDED, torch.ones(6)))),
    ]:
        with pytest.raises(BadInputError, match=f"(?s)table 'item'.*{message}"):
            call()
    col = EmbeddingBagCollection(ps, {"item": spec()})
    with pytest.raises(BadInputError, match="is a Tensor; give a dict"):
        col(VALUES)
    with pytest.raises(BadInputError, match="'noise' is not in this collection"):
        col({"item": VALUES.view(2, 3)}, {"noise": VALUES})
    with pytest.raises(BadInputError, match="mode is 'avg'"):
        EmbeddingBagCollection(ps, {"item": spec()}, mode="avg")
    assert ps.calls == []


@pytest.mark.skipif(find_spec("torchrec") is None, reason="torchrec is not installed")
def test_torchrec(ps, spec):
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor  # noqa: PLC0415

    keyed = KeyedJaggedTensor.from_lengths_sync(
        ["item", "user"], torch.cat([VALUES, VALUES]), torch.tensor([2, 0, 3, 1] * 2)
    )
    bags = EmbeddingBagCollection(ps, {"item": spec("i"), "user": spec("u")}, mode="sum")
    wanted = EmbeddingBag(ps, spec("i"), "sum")(VALUES, OFFSETS)
    assert torch.equal(bags(keyed)["item"], wanted)
