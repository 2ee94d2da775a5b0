"""Goal: tables are made, found, altered and dropped alike over every transport.

Method: as `test_verbs_rows`.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
from support.clients import AsyncClient, fresh_name

import hybridps as hps


@pytest.mark.parametrize(
    "optimizer",
    [
        hps.SGD(1 / 3),
        hps.Adagrad(0.05, initial_accumulator=0.1),
        hps.RowWiseAdagrad(0.05, eps=1e-5),
        hps.Adam(0.001, betas=(0.8, 0.99), eps=1e-6),
    ],
)
@pytest.mark.parametrize(
    "initializer",
    [
        hps.Zeros(),
        hps.Constant(0.7),
        hps.Uniform(-1, 1),
        hps.Normal(0.1, 0.2),
        hps.TruncatedNormal(std=0.3),
    ],
)
def test_the_stored_spec_equals_the_asked(ps: Any, optimizer: Any, initializer: Any) -> None:
    asked = hps.TableSpec(
        fresh_name(), 3, optimizer, initializer, seed=2**64 - 1, dram="2MiB", nvme="1GiB"
    )
    table = ps.create_table(asked)
    assert table.spec == asked
    assert ps.create_table(asked).spec == asked
    assert ps.table(asked.name).spec == asked
    np.testing.assert_array_equal(table.lookup_or_insert([3, 4]), asked.initial_rows([3, 4]))


def test_tables_lists_names(ps: Any) -> None:
    names = [fresh_name() for _ in range(3)]
    for name in names:
        ps.create_table(hps.TableSpec(name, 1, hps.SGD()))
    listed = ps.tables()
    assert listed == sorted(listed)
    assert set(names) <= set(listed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dim": 5}, "dim"),
        ({"seed": 4}, "seed"),
        ({"optimizer": hps.Adam()}, "optimizer"),
        ({"initializer": hps.Zeros()}, "initializer"),
    ],
)
def test_another_shape_is_a_mismatch(
    ps: Any, table: Any, spec: hps.TableSpec, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(hps.TableMismatchError, match=named) as caught:
        ps.create_table(dataclasses.replace(spec, **change))
    assert spec.name in str(caught.value)
    assert table.spec == spec


def test_live_differences_warn_and_the_stored_value_stays(
    ps: Any, table: Any, spec: hps.TableSpec
) -> None:
    asked = dataclasses.replace(spec, optimizer=hps.SGD(0.25), dram="4MiB")
    with pytest.warns(UserWarning, match=spec.name) as caught:
        opened = ps.create_table(asked)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert all(spec.name in text for text in texts)
    assert any("learning_rate" in text for text in texts)
    assert any("dram" in text for text in texts)
    assert opened.spec == table.spec == spec


def test_live_settings_change(table: Any, spec: hps.TableSpec) -> None:
    table.set_learning_rate(0.25)
    assert table.spec.optimizer == hps.SGD(0.25)
    table.apply_gradients([1], np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(table.lookup(1), spec.initial_rows(1) - np.float32(0.25))
    table.alter(learning_rate=2, dram="3MiB", nvme=1 << 30)
    assert table.spec == dataclasses.replace(spec, optimizer=hps.SGD(2), dram=3 << 20, nvme=1 << 30)
    table.alter(dram=None)
    assert table.spec == dataclasses.replace(spec, optimizer=hps.SGD(2), nvme=1 << 30)
    table.alter()
    assert table.spec.nvme == 1 << 30


def test_a_handle_stays_with_its_table(ps: Any, table: Any, spec: hps.TableSpec) -> None:
    table.lookup_or_insert([1])
    ps.lookup({spec.name: [1]})
    ps.drop_table(spec.name)
    calls = [
        lambda: table.lookup(1),
        lambda: table.lookup_or_insert(1),
        lambda: table.apply_gradients(1, np.zeros(4, np.float32)),
        lambda: table.assign(1, np.zeros(4, np.float32)),
        lambda: table.remove(1),
        lambda: len(table),
        table.stats,
        lambda: table.spec,
        lambda: table.alter(dram=None),
        lambda: table.set_learning_rate(1),
        lambda: list(table.keys()),
        lambda: table.lookup([]),
    ]
    for is_made_anew in (False, True):
        if is_made_anew:
            anew = ps.create_table(spec)
        for call in calls:
            with pytest.raises(hps.TableNotFoundError, match=spec.name):
                call()
    assert len(anew) == 0


def test_verbs_by_name_find_the_new_table(ps: Any, spec: hps.TableSpec) -> None:
    ps.create_table(spec)
    ps.lookup_or_insert({spec.name: [1]})
    ps.drop_table(spec.name)
    with pytest.raises(hps.TableNotFoundError, match=spec.name):
        ps.lookup({spec.name: [1]})
    ps.create_table(dataclasses.replace(spec, dim=2))
    assert ps.lookup({spec.name: [1]})[spec.name].shape == (1, 2)


def test_another_client_may_drop_and_make_anew(
    kind: str, ps: Any, table: Any, spec: hps.TableSpec, request: pytest.FixtureRequest
) -> None:
    if kind.startswith("local"):
        pytest.skip("one process, one client")
    ps.lookup({spec.name: [1]})
    with hps.connect(request.getfixturevalue("servers").url(kind)) as other:
        other.drop_table(spec.name)
        other.create_table(dataclasses.replace(spec, dim=2))
    assert ps.lookup({spec.name: [1]})[spec.name].shape == (1, 2)
    with pytest.raises(hps.TableNotFoundError):
        table.lookup(1)


def test_absent_tables(ps: Any) -> None:
    for call in (
        lambda: ps.table("absent"),
        lambda: ps.drop_table("absent"),
        lambda: ps.lookup({"absent": [1]}),
        lambda: ps.apply_gradients({"absent": ([1], np.ones((1, 4), np.float32))}),
    ):
        with pytest.raises(hps.TableNotFoundError, match="absent") as caught:
            call()
        assert isinstance(caught.value, KeyError)
        assert not str(caught.value).startswith(("'", '"'))


def test_flush_and_close(ps: Any, table: Any) -> None:
    table.lookup_or_insert([1])
    ps.flush()
    ps.close()
    ps.close()
    if not hasattr(ps, "loop"):
        with pytest.raises(hps.UnavailableError, match="closed"):
            table.lookup(1)


def test_dropping_what_is_not_there(ps: Any, table: Any) -> None:
    ps.drop_table(table.name)
    with pytest.raises(hps.TableNotFoundError):
        ps.drop_table(table.name)
    ps.drop_table(table.name, missing_ok=True)


def test_in_asks_for_the_name(ps: Any, table: Any) -> None:
    if isinstance(ps, AsyncClient):
        pytest.skip("`in` cannot be awaited")
    assert table.name in ps
    assert "absent" not in ps
    assert 7 not in ps
    ps.drop_table(table.name)
    assert table.name not in ps
