"""Goal: every layer trains to torch's rows. Method: several steps beside torch's own functions,
on ids that repeat, then every row of the table against the reference."""

import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, EmbeddingCollection

import hybridps as hps

KEYS = 12
STEPS = 4


def some_ids(shape, step, dtype=torch.int64):
    return torch.randint(KEYS, shape, generator=torch.Generator().manual_seed(step)).to(dtype)


@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("optimizer", [hps.SGD(0.1), hps.Adagrad(0.1)])
@pytest.mark.parametrize("shape", [(30,), (6, 5), (2, 3, 4), ()])
def test_embedding(ps, spec, reference, same_rows, loss_of, shape, optimizer, padding_idx):
    layer = Embedding(ps, spec(optimizer=optimizer), padding_idx)
    ref = reference(spec(optimizer=optimizer), KEYS, padding_idx)
    for step in range(STEPS):
        ids = some_ids(shape, step)
        # Flat, because torch's own backward fails for one id with a padding_idx.
        theirs = ref.embedding(ids.reshape(-1), padding_idx).reshape(*shape, 8)
        ours = layer(ids)
        torch.testing.assert_close(ours, theirs)
        loss_of(ours, step).backward()
        loss_of(theirs, step).backward()
        ref.step()
    same_rows("item", ref)
    assert len(ps.pushes()) <= STEPS


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint64])
def test_ids_of_any_integer_dtype(ps, spec, dtype):
    layer = Embedding(ps, spec())
    wanted = torch.from_numpy(spec().initial_rows(range(KEYS)))
    torch.testing.assert_close(layer(torch.arange(KEYS).to(dtype)), wanted)


def test_negative_and_unsigned_ids_are_one_pattern(ps, spec):
    layer = Embedding(ps, spec(), padding_idx=2**64 - 1)
    signed = layer(torch.tensor([-1, -1], dtype=torch.int8))
    unsigned = layer(torch.tensor([2**64 - 1] * 2, dtype=torch.uint64))
    assert torch.equal(signed, unsigned)
    assert not signed.any()
    assert len(ps.table("item")) == 0
    (signed.sum() + unsigned.sum()).backward()
    assert ps.pushes() == []


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_bag_of_offsets(
    ps, spec, reference, same_rows, loss_of, mode, padding_idx, include_last_offset
):
    layer = EmbeddingBag(ps, spec(), mode, padding_idx, include_last_offset)
    ref = reference(spec(), KEYS)
    options = {"padding_idx": padding_idx, "include_last_offset": include_last_offset}
    for step in range(STEPS):
        ids = some_ids((20,), step)
        ids[4:6] = 3  # A bag of nothing but padding, when there is padding.
        offsets = torch.tensor([0, 4, 6, 6, 7, 15, 20][: 7 if include_last_offset else 6])
        ours, theirs = layer(ids, offsets), ref.bag(ids, offsets, mode, **options)
        torch.testing.assert_close(ours, theirs)
        loss_of(ours, step).backward()
        loss_of(theirs, step).backward()
        ref.step()
    same_rows("item", ref)
    assert len(ps.pushes()) == STEPS
    if padding_idx is not None:
        assert not any((part == 3).any() for part in ps.table("item").keys())  # noqa: SIM118


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("shape", [(5, 4), (3, 0), (0, 4)])
@pytest.mark.parametrize("include_last_offset", [False, True])
def test_bag_of_lines(ps, spec, reference, same_rows, loss_of, mode, shape, include_last_offset):
    layer = EmbeddingBag(ps, spec(), mode=mode, include_last_offset=include_last_offset)
    ref = reference(spec(), KEYS)
    for step in range(STEPS):
        ids = some_ids(shape, step, torch.int32)
        # By offsets, because torch refuses lines of no ids.
        offsets = torch.arange(shape[0]) * shape[1]
        ours, theirs = layer(ids), ref.bag(ids.reshape(-1), offsets, mode)
        torch.testing.assert_close(ours, theirs)
        loss_of(ours, step).backward()
        loss_of(theirs, step).backward()
        ref.step()
    if 0 not in shape:
        same_rows("item", ref)
    assert len(ps.pushes()) == (0 if 0 in shape else STEPS)


@pytest.mark.parametrize("padding_idx", [None, 3])
def test_weights_of_samples(ps, spec, reference, same_rows, loss_of, padding_idx):
    layer = EmbeddingBag(ps, spec(), "sum", padding_idx)
    ref = reference(spec(), KEYS)
    for step in range(STEPS):
        ids = some_ids((5, 4), step)
        ids[0, :2] = 3
        weights = torch.rand(5, 4, generator=torch.Generator().manual_seed(step))
        mine, its = (weights.clone().requires_grad_() for _ in range(2))
        ours = layer(ids, per_sample_weights=mine)
        theirs = ref.bag(ids, mode="sum", per_sample_weights=its, padding_idx=padding_idx)
        torch.testing.assert_close(ours, theirs)
        loss_of(ours, step).backward()
        loss_of(theirs, step).backward()
        torch.testing.assert_close(mine.grad, its.grad)
        ref.step()
    same_rows("item", ref)


def test_collection_is_one_read_and_one_push(ps, spec, reference, same_rows, loss_of):
    specs = {"item": spec("item"), "user": spec("user", dim=3), "seen": spec("item")}
    layer = EmbeddingCollection(ps, specs)
    items, users = reference(spec("item"), KEYS), reference(spec("user", dim=3), KEYS)
    for step in range(STEPS):
        ids = {
            "item": some_ids((6,), step),
            "user": some_ids((6,), 50 + step, torch.uint64),
            "seen": some_ids((6, 4), 90 + step, torch.int32),
        }
        theirs = {f: (users if f == "user" else items).embedding(i.long()) for f, i in ids.items()}
        ps.calls.clear()
        ours = layer(ids)
        sum(loss_of(v, step) for v in ours.values()).backward()
        assert ps.verbs() == ["lookup_or_insert", "apply_gradients"]
        assert set(ps.calls[1][1]) == {"item", "user"}
        sum(loss_of(v, step) for v in theirs.values()).backward()
        for feature in ids:
            torch.testing.assert_close(ours[feature], theirs[feature])
        items.step()
        users.step()
    same_rows("item", items)
    same_rows("user", users)


def test_two_layers_on_one_table_and_one_layer_twice(ps, spec, reference, same_rows, loss_of):
    first, bag, ref = Embedding(ps, spec()), EmbeddingBag(ps, spec()), reference(spec(), KEYS)
    for step in range(STEPS):
        a, b, c = (some_ids((4, 3), 10 * step + i) for i in range(3))
        ps.calls.clear()
        ours = (first(a), bag(b), first(c) * 2)
        sum(loss_of(v, step) for v in ours).backward()
        assert len(ps.pushes()) == 1
        theirs = (ref.embedding(a), ref.bag(b), ref.embedding(c) * 2)
        sum(loss_of(v, step) for v in theirs).backward()
        ref.step()
    same_rows("item", ref)


def test_output_is_float32_under_autocast(ps, spec):
    layer, bag = Embedding(ps, spec()), EmbeddingBag(ps, spec("bag"), "sum")
    head = torch.nn.Linear(8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = layer(torch.arange(4))
        weights = head(vectors)
        bags = bag(torch.arange(16).view(4, 4), per_sample_weights=weights)
    assert vectors.dtype == bags.dtype == torch.float32
    assert weights.dtype == torch.bfloat16
    bags.sum().backward()
    (push,) = ps.pushes()
    assert {gradient.dtype.name for _, gradient in push.values()} == {"float32"}


def test_dense_optimizer_and_half_model_leave_the_rows_alone(ps, spec, reference, same_rows):
    """Optimizers, clipping and casts run over all parameters, the anchor among them."""
    model = torch.nn.Sequential(Embedding(ps, spec()), torch.nn.Linear(8, 1)).to(torch.float64)
    model.to(torch.float32)
    ref = reference(spec(), KEYS)
    head = torch.nn.Linear(8, 1)
    head.load_state_dict(model[1].state_dict())
    dense, its = (torch.optim.AdamW(m.parameters(), 0.05) for m in (model, head))
    for step in range(STEPS):
        ids = some_ids((9,), step)
        for optimizer, loss in ((dense, model(ids)), (its, head(ref.embedding(ids)))):
            optimizer.zero_grad()
            loss.square().sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        dense.step()
        its.step()
        ref.step()
    same_rows("item", ref)
    torch.testing.assert_close(model[1].weight, head.weight)
