"""Goal: an expiry is what it was said to be, after any trip, and what is none is refused by name.

Method: by example; the engine reads the stored form.
"""

from datetime import timedelta
from typing import Any

import pytest

import hybridps as hps
from hybridps import _core
from hybridps.durations import format_duration, parse_duration
from hybridps.verbs.create_table import CreateTable
from hybridps.verbs.settings import Alter


def spec(expiry: Any) -> hps.TableSpec:
    return hps.TableSpec("item", 4, hps.SGD(0.1), expiry=expiry)


@pytest.mark.parametrize(
    ("age", "seconds"),
    [
        ("30d", 30 * 86_400),
        ("36 h", 36 * 3600),
        ("1.5m", 90),
        ("45S", 45),
        ("2w", 14 * 86_400),
        ("10min", 600),
        (90, 90),
        (timedelta(days=1, seconds=1), 86_401),
    ],
)
def test_ages_as_people_write_them(age: Any, seconds: int) -> None:
    assert parse_duration(age, "age") == seconds
    assert hps.After(age) == hps.After(seconds)
    assert hps.After(age).options() == {"kind": "after", "seconds": seconds}
    assert parse_duration(format_duration(seconds), "age") == seconds


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: hps.After("30"), "age is '30'; give seconds.*\"30d\""),
        (lambda: hps.After("a month"), "age is 'a month'"),
        (lambda: hps.After(1.5), r"age is 1\.5"),
        (lambda: hps.After(True), "age is True"),
        (lambda: hps.After(None), "age is None"),
        (lambda: hps.After(0), "age is 0 seconds; give 1 to"),
        (lambda: hps.After("101000w"), "a century"),
        (lambda: hps.After(timedelta(milliseconds=1)), "age is 0 seconds"),
        (lambda: hps.AfterSteps(0), "steps is 0; give 1 to"),
        (lambda: hps.AfterSteps(2**63), "steps is"),
        (lambda: hps.AfterSteps(1e5), "steps is 100000.0; give an int"),
        (lambda: hps.AfterSteps(True), "steps is True"),
        (lambda: hps.BelowNorm(0), "norm is 0; give a finite number above 0"),
        (lambda: hps.BelowNorm(-1), "norm is -1"),
        (lambda: hps.BelowNorm(float("nan")), "norm is nan"),
        (lambda: hps.BelowNorm("small"), "norm is 'small'"),
        (lambda: hps.BelowNorm(1e-50), "norm is 1e-50"),
    ],
)
def test_what_is_no_expiry_is_named(make: Any, named: str) -> None:
    with pytest.raises(hps.BadInputError, match=named):
        make()


@pytest.mark.parametrize(
    "expiry", [hps.After("30d"), hps.AfterSteps(100_000), hps.BelowNorm(1e-6), None]
)
def test_a_spec_keeps_it(expiry: Any) -> None:
    made = spec(expiry)
    _core.check_spec(made.to_json())
    assert hps.TableSpec.from_json(made.to_json()) == made
    assert hash(hps.TableSpec.from_json(made.to_json())) == hash(made)


def test_an_age_is_shown_as_people_write_it() -> None:
    shown = [repr(hps.After(age)) for age in (30 * 86_400, 7200, 90, 3601)]
    assert shown == ["After('30d')", "After('2h')", "After('90s')", "After('3601s')"]


def test_a_server_that_would_pass_over_it_is_not_asked() -> None:
    """It would make a table whose rows stay for ever."""
    assert "expiry" in CreateTable(spec(hps.After("30d")).to_json()).needs()
    assert "expiry" not in CreateTable(spec(None).to_json()).needs()
    assert "expiry" in Alter(1, {"expiry": None}).needs()
    assert "expiry" not in Alter(1, {"dram": None}).needs()
