"""Goal: sizes as people write them. Method: by example, and that a shown size reads back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridps as hps
from hybridps.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("512 MiB", 512 << 20),
        ("1.5kib", 1536),
        ("64MB", 64_000_000),
        ("17", 17),
        (" 3 B ", 3),
        ("2TiB", 2 << 40),
        (1 << 20, 1 << 20),
        (0, 0),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["", "GiB", "8 gigs", "-1", "1e3", "8GiB GiB", -1, 1.5, True, None])
def test_bad_sizes_are_named(bad: Any) -> None:
    with pytest.raises(hps.BadInputError, match="dram is"):
        parse_size(bad, "dram")


def test_sizes_end_at_63_bits() -> None:
    assert parse_size(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(hps.BadInputError):
        parse_size("9000000TiB")


@given(st.integers(0, 2**50))
def test_shown_sizes_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=1e-3)
