"""Goal: rows and gradients of 16 bits are the nearest to what they stand for, the rest is as ever.

Method: a client of each dtype beside a float32 one; NumPy rounds (float16 itself, bfloat16 by its
definition on the bits). An old server is one whose hello names no features.
"""

import dataclasses
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.clients import Servers, connect, fresh_name

import hybridps as hps
from hybridps.verbs import hello

DIM = 5
KEYS = np.arange(1, 2001, dtype=np.int64)


def rounded(numbers: np.ndarray, dtype: str) -> np.ndarray:
    """float32 of the nearest numbers of 16 bits, ties to even."""
    if dtype == "float16":
        return numbers.astype(np.float16).astype(np.float32)
    exact = np.ascontiguousarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return ((exact + 0x7FFF + (exact >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


@pytest.fixture(params=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    """How rows and gradients travel."""
    return str(request.param)


@pytest.fixture(params=["tcp", "tcp-aio", "shards"])
def kind(request: pytest.FixtureRequest) -> str:
    """A transport with a wire."""
    return str(request.param)


@pytest.fixture
def both(kind: str, servers: Servers, dtype: str) -> Iterator[tuple[Any, Any]]:
    """A table by a client of the dtype, and by one of float32."""
    url = servers.url(kind)
    spec = hps.TableSpec(fresh_name(), DIM, hps.SGD(1.0), hps.Normal(std=1.0), seed=1)
    with connect(kind, url, wire_dtype=dtype) as narrow, connect(kind, url) as plain:
        yield narrow.create_table(spec), plain.create_table(spec)


def test_rows_come_rounded(both: tuple[Any, Any], dtype: str) -> None:
    narrow, plain = both
    made = narrow.lookup_or_insert(KEYS)
    exact = plain.lookup(KEYS)
    np.testing.assert_array_equal(made, rounded(exact, dtype))
    rows, found = narrow.lookup(KEYS[:3], return_found=True)
    assert rows.dtype == np.float32
    assert found.all()
    np.testing.assert_array_equal(rows, made[:3])
    assert narrow.lookup(KEYS[7]).tolist() == made[7].tolist()


def test_gradients_go_rounded_and_rows_are_assigned_exactly(
    both: tuple[Any, Any], dtype: str
) -> None:
    narrow, plain = both
    values = np.linspace(-3, 3, len(KEYS) * DIM, dtype=np.float32).reshape(-1, DIM)
    narrow.assign(KEYS, values)
    np.testing.assert_array_equal(plain.lookup(KEYS), values)
    gradients = np.cos(values)
    narrow.apply_gradients(KEYS, gradients)
    np.testing.assert_array_equal(plain.lookup(KEYS), values - rounded(gradients, dtype))
    before = plain.lookup(5)
    narrow.apply_gradients([5, 5], np.full((2, DIM), 0.3, np.float32))
    total = rounded(np.full(DIM, 0.3, np.float32) * 2, dtype)
    np.testing.assert_array_equal(plain.lookup(5), before - total)


def test_sums_of_bags_come_rounded(both: tuple[Any, Any], kind: str, dtype: str) -> None:
    narrow, plain = both
    plain.lookup_or_insert(KEYS)
    bags = KEYS.reshape(-1, 10)
    exact = plain.lookup(bags, pool="sum")
    got = narrow.lookup(bags, pool="sum")
    if kind == "shards":
        np.testing.assert_allclose(got, exact, rtol=1e-2, atol=0.2)
    else:
        np.testing.assert_array_equal(got, rounded(exact, dtype))


@pytest.mark.parametrize("dtype", ["float16"], indirect=True)
def test_what_float16_does_not_reach_is_refused(both: tuple[Any, Any]) -> None:
    narrow, plain = both
    far = np.ones((2, DIM), np.float32)
    far[1, 3] = 1e5
    plain.assign([1, 2], far)
    with pytest.raises(hps.BadInputError, match=r"100000 at column 3.*bfloat16"):
        narrow.lookup([1, 2])
    narrow.lookup([1])
    for keys, gradients, text in (
        ([7, 8], far, r"gradient of key 8 is 100000.*column 3"),
        ([7, 7], np.full((2, DIM), -40_000, np.float32), r"gradient of key 7 is -80000"),
    ):
        with pytest.raises(hps.BadInputError, match=text):
            narrow.apply_gradients(keys, gradients)
    assert not plain.lookup([7, 8], return_found=True)[1].any(), "nothing was applied"
    narrow.apply_gradients([7], np.full((1, DIM), 65504, np.float32))


def test_a_push_in_parts(servers: Servers) -> None:
    # More keys than a message names.
    keys = np.arange(1_100_000)
    with hps.connect(servers.url("tcp"), wire_dtype="bfloat16") as ps:
        table = ps.create_table(hps.TableSpec(fresh_name(), 1, hps.SGD(1.0), hps.Zeros()))
        table.apply_gradients(keys, np.full((len(keys), 1), 1.001, np.float32))
        assert (table.lookup(keys) == -1.0).all()
        ps.drop_table(table.name)


def test_a_copy_of_a_client_keeps_it(servers: Servers) -> None:
    with hps.connect(servers.url("tcp"), wire_dtype="bfloat16") as ps:
        table = ps.create_table(hps.TableSpec(fresh_name(), 1, hps.SGD(1.0)))
        table.assign([1], np.array([[1.001]], np.float32))
        with pickle.loads(pickle.dumps(ps)) as copy:  # noqa: S301 - our own bytes
            assert copy.table(table.name).lookup(1).tolist() == [1.0]


def test_an_old_server_is_refused(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    told = hello.Hello.result

    def of_old(_: type, results: Any) -> Any:
        return dataclasses.replace(told(results), features=hello.FIRST_FEATURES)

    monkeypatch.setattr(hello.Hello, "result", classmethod(of_old))
    url = servers.url("tcp")
    with hps.connect(url) as ps:
        table = ps.create_table(hps.TableSpec(fresh_name(), 1, hps.SGD(1.0)))
        with pytest.raises(hps.ConfigError, match="does not know 'lookup_pooled'"):
            table.lookup([[1, 2]], pool="sum")
    with pytest.raises(hps.ConfigError, match=r"float32 alone.*wire_dtype='float16'"):
        hps.connect(url, wire_dtype="float16", timeout=5.0)


def test_settings_that_are_none(tmp_path: Any, servers: Servers) -> None:
    with pytest.raises(hps.ConfigError, match="wire_dtype is 'int8'"):
        hps.connect(servers.url("tcp"), wire_dtype="int8")
    with pytest.raises(hps.ConfigError, match="wire_dtype= belongs to servers"):
        hps.connect(f"local:{tmp_path}", wire_dtype="float16")
