"""Goal: the error tree of the contract, by class, by text and over the wire."""

import copy

import pytest

import hybridps as hps
from hybridps.errors import BY_NAME, from_reason


@pytest.mark.parametrize(
    ("name", "also"),
    [
        ("BadInputError", ValueError),
        ("TableNotFoundError", KeyError),
        ("TableMismatchError", Exception),
        ("StoreFullError", Exception),
        ("CorruptionError", Exception),
        ("ConfigError", Exception),
        ("UnavailableError", ConnectionError),
        ("DeadlineError", TimeoutError),
        ("OverloadedError", Exception),
    ],
)
def test_the_tree(name: str, also: type[Exception]) -> None:
    cls = getattr(hps, name)
    assert issubclass(cls, hps.HybridPSError)
    assert issubclass(cls, also)
    error = cls("table 'item' is gone")
    assert str(error) == "table 'item' is gone"
    assert str(copy.copy(error)) == str(error)
    assert type(from_reason(f"{name}: a: b")) is cls
    assert str(from_reason(f"{name}: a: b")) == "a: b"
    assert BY_NAME[name] is cls


@pytest.mark.parametrize("reason", ["", "no colon", "OSError: x", "KeyError: x"])
def test_unknown_reasons_stay_whole(reason: str) -> None:
    error = from_reason(reason)
    assert type(error) is hps.HybridPSError
    assert str(error) == reason


def test_names_of_later_stages_are_absent() -> None:
    for name in ("NearCache", "Replica"):
        assert not hasattr(hps, name)
    assert set(hps.__all__) <= set(dir(hps))
