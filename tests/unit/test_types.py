"""Goal: specs are checked on creation, survive JSON, and give the engine's initial rows.

Method: by example; initial rows of `Uniform` are computed here from the documented stream.
"""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps import _core
from hybridps.optimizers import OPTIMIZERS, at_least_zero, to_float32
from hybridps.placement import hash_keys


def spec(**changes: Any) -> hps.TableSpec:
    return hps.TableSpec(**{"name": "item", "dim": 4, "optimizer": hps.SGD(0.1)} | changes)


def test_the_example_of_the_contract() -> None:
    made = hps.TableSpec(
        name="item", dim=64,
        optimizer=hps.Adagrad(learning_rate=0.05, initial_accumulator=0.1),
        initializer=hps.Normal(std=0.01), seed=7,
        admission=None, expiry=None, dtype="float32", dram="8GiB", nvme=None,
    )  # fmt: skip
    assert made.dram == 8 << 30
    assert hps.TableSpec.from_json(made.to_json()) == made
    assert hash(made) == hash(hps.TableSpec.from_json(made.to_json()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.dim = 3  # type: ignore[misc]


def test_the_engine_reads_the_stored_form() -> None:
    for cls in OPTIMIZERS.values():
        optimizer = cls(0.25, weight_decay=0.125, clip_value=2, clip_norm=3)
        made = spec(optimizer=optimizer)
        _core.check_spec(made.to_json())
        assert hps.TableSpec.from_json(made.to_json()) == made
        assert getattr(hps, cls.__name__) is cls
    for optimizer in (cls() for cls in OPTIMIZERS.values()):
        for initializer in (
            hps.Zeros(), hps.Constant(1), hps.Uniform(0, 1), hps.Normal(), hps.TruncatedNormal(),
        ):  # fmt: skip
            made = spec(optimizer=optimizer, initializer=initializer)
            _core.check_spec(made.to_json())
            assert hps.TableSpec.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": ""}, "name"),
        ({"name": "-a"}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": 3}, "name"),
        ({"dim": 0}, "dim"),
        ({"dim": 4097}, "dim"),
        ({"dim": 1.0}, "dim"),
        ({"dim": True}, "dim"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"dtype": "float64"}, "dtype"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"dram": "1KiB"}, "dram.*1MiB"),
        ({"nvme": "lots"}, "nvme"),
        ({"optimizer": "adam"}, "optimizer"),
        ({"optimizer": hps.Adam}, "optimizer"),
        ({"initializer": 0.0}, "initializer"),
        ({"admission": 3}, "admission"),
        ({"expiry": "30d"}, "expiry.*hps.After"),
        ({"expiry": hps.After}, "expiry"),
    ],
)
def test_bad_specs_are_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(hps.BadInputError, match=named):
        spec(**change)


def test_admissions_survive_json_and_the_engine() -> None:
    for admission in (
        None, hps.MinCount(3), hps.MinCount(1, 1), hps.MinCount(n=65536, capacity=1000),
        hps.Probability(0.1), hps.Probability(p=1, capacity=5), hps.Probability(1 / 4096, 1000),
    ):  # fmt: skip
        made = spec(admission=admission)
        _core.check_spec(made.to_json())
        assert hps.TableSpec.from_json(made.to_json()) == made
        assert hash(made) == hash(hps.TableSpec.from_json(made.to_json()))
    assert hps.MinCount(3) == hps.MinCount(np.int32(3), capacity=10_000_000)
    assert "admission" not in json.loads(spec().to_json()), "as stores of before have it"


def test_both_sides_bound_the_capacity_alike() -> None:
    """The largest is taken by both, one more by neither."""
    for admission in (hps.MinCount(2, 1), hps.MinCount(65536, 1), hps.Probability(0.1, 1)):
        with pytest.raises(hps.BadInputError, match=r"capacity is .*; give 1 to") as raised:
            dataclasses.replace(admission, capacity=2**60)
        most = int(str(raised.value).split(" to ")[1].split(",")[0])
        largest = spec(admission=dataclasses.replace(admission, capacity=most))
        _core.check_spec(largest.to_json())
        beyond = largest.to_json().replace(f'"capacity": {most}', f'"capacity": {most + 1}')
        with pytest.raises(hps.BadInputError, match=f"capacity is {most + 1}; give 1 to {most} "):
            _core.check_spec(beyond)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: hps.MinCount(0), "n is 0; give 1 to 65536"),
        (lambda: hps.MinCount(65537), "n is 65537; give 1 to 65536"),
        (lambda: hps.MinCount(2.5), "n is 2.5"),
        (lambda: hps.MinCount(True), "n is True"),
        (lambda: hps.MinCount(2, 0), "capacity is 0; give 1 to"),
        (lambda: hps.MinCount(65536), "capacity is 10000000; give 1 to 2682880"),
        (lambda: hps.MinCount(2, capacity="10M"), "capacity is '10M'"),
        (lambda: hps.Probability(0), "p is 0; give a number of 1/4096 to 1"),
        (lambda: hps.Probability(1.5), "p is 1.5"),
        (lambda: hps.Probability(float("nan")), "p is nan"),
        (lambda: hps.Probability("0.5"), "p is '0.5'"),
        (lambda: hps.Probability(True), "p is True"),
        (lambda: hps.Probability(0.0003), "capacity is 10000000; give 1 to"),
        (lambda: hps.SGD(-1), "learning_rate"),
        (lambda: hps.SGD(float("nan")), "learning_rate"),
        (lambda: hps.SGD("fast"), "learning_rate"),
        (lambda: hps.SGD(1e39), "learning_rate"),
        (lambda: hps.Adagrad(initial_accumulator=-1), "initial_accumulator"),
        (lambda: hps.RowWiseAdagrad(eps=-1), "eps"),
        (lambda: hps.Adam(betas=(0.9, 1.0)), r"betas\[1\]"),
        (lambda: hps.Adam(betas=(-0.1, 0.9)), r"betas\[0\]"),
        (lambda: hps.Adam(betas=0.9), "betas"),
        (lambda: hps.Momentum(momentum=1), "momentum"),
        (lambda: hps.Momentum(nesterov=1), "nesterov"),
        (lambda: hps.RMSprop(alpha=-0.1), "alpha"),
        (lambda: hps.FTRL(0.0), "learning_rate.*divides"),
        (lambda: hps.GroupAdam(l21=-1), "l21"),
        (lambda: hps.SGD(weight_decay=-1), "weight_decay"),
        (lambda: hps.Adam(clip_value=0), "clip_value"),
        (lambda: hps.AdamW(clip_norm=float("inf")), "clip_norm"),
        (lambda: hps.Constant(float("inf")), "value"),
        (lambda: hps.Uniform(2, 1), "low"),
        (lambda: hps.Normal(std=-1), "std"),
        (lambda: hps.TruncatedNormal(mean=None), "mean"),
    ],
)
def test_bad_settings_are_named(make: Any, named: str) -> None:
    with pytest.raises(hps.BadInputError, match=named):
        make()


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "x"}', "null"])
def test_what_is_no_stored_form(text: str) -> None:
    with pytest.raises(hps.BadInputError, match="not readable"):
        hps.TableSpec.from_json(text)


def test_an_unknown_kind_is_no_stored_form() -> None:
    fields = json.loads(spec().to_json())
    fields["optimizer"] = {"kind": "magic"}
    with pytest.raises(hps.BadInputError):
        hps.TableSpec.from_json(json.dumps(fields))


def test_numbers_are_float32_in_their_shortest_form() -> None:
    assert to_float32(0.1, "x") == 0.1
    assert to_float32(np.float32(0.1), "x") == 0.1
    assert np.float32(to_float32(1 / 3, "x")) == np.float32(1 / 3)
    assert at_least_zero(np.float64(2), "x") == 2.0


def test_initial_rows_are_the_documented_stream() -> None:
    made = spec(initializer=hps.Uniform(-1, 1), seed=9, dim=3)
    keys = np.array([0, 1, 2**64 - 1], np.uint64)
    gamma = np.uint64(0x9E37_79B9_7F4A_7C15)
    seed = hash_keys(np.array([9], np.uint64) ^ gamma)
    draws = []
    state = hash_keys(keys ^ seed)
    with np.errstate(over="ignore"):
        for _ in range(3):
            state = state + gamma
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
            draws.append((z ^ (z >> np.uint64(31))) >> np.uint64(40))
    unit = np.stack(draws, 1).astype(np.float32) / np.float32(1 << 24)
    np.testing.assert_array_equal(made.initial_rows(keys), np.float32(-1) + np.float32(2) * unit)
    assert made.initial_rows(3).shape == (3,)
    assert made.initial_rows([[1, 2]]).shape == (1, 2, 3)
