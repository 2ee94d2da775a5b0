"""Data sets that do not ship with the project; tests that want them are skipped, by name."""

import os
from pathlib import Path

import pytest

from hybridps.demo import datasets

CHECKOUT = Path(__file__).resolve().parents[2]


def shared(name: str) -> datasets.Dataset:
    """The set of HYBRIDPS_SHARED, or of `shared` in or beside the checkout."""
    places = [os.environ.get("HYBRIDPS_SHARED"), CHECKOUT.parent / "shared", CHECKOUT / "shared"]
    for place in filter(None, places):
        path = Path(place) / "data" / name / f"{name}.npz"
        if path.is_file():
            return datasets.npz(path)
    pytest.skip(f"{name} is not here: set HYBRIDPS_SHARED to the directory that holds data/{name}")
