"""Goal: a cursor is what was written or is refused, whatever it is given. Method: positions through
their text and back; texts that are cut, altered, or made of random bytes and JSON."""

import base64
import json
import random
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hybridps as hps
from hybridps.placement import CELLS
from hybridps.verbs.position import Position, Progress, Shard

U64 = st.integers(0, 2**64 - 1)
PASSES = st.builds(
    Progress, st.integers(0, 2**32 - 1), st.none() | U64, U64, st.integers(0, CELLS - 1)
)
PROGRESS = PASSES | st.builds(Progress, st.integers(0, 2**32 - 1), U64)
STORES = st.text("0123456789abcdef", min_size=32, max_size=32)
SHARDS = st.builds(Shard, STORES, st.dictionaries(st.text(), PROGRESS, max_size=4))
NAMES = st.none() | st.lists(st.text(), max_size=4).map(tuple)
POSITIONS = st.builds(Position, NAMES, st.lists(SHARDS, max_size=3).map(tuple))


def packed(value: Any) -> str:
    """A text whose JSON is of our making."""
    return "hps1." + base64.urlsafe_b64encode(zlib.compress(json.dumps(value).encode())).decode()


@given(POSITIONS)
def test_what_is_written_is_read_again(position: Position) -> None:
    text = position.to_text()
    assert text.isascii()
    assert Position.from_text(text) == position


@given(POSITIONS, st.randoms(use_true_random=False))
def test_an_altered_text_is_refused(position: Position, chance: random.Random) -> None:
    text = position.to_text()
    at = chance.randrange(len(text))
    altered = chance.choice([text[:at], text[:at] + "A" + text[at:], text[:at] + text[at + 1 :]])
    try:
        # Base64 has more than one spelling of its last byte.
        assert Position.from_text(altered) == position
    except hps.CursorError:
        return


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON | st.tuples(JSON, st.lists(st.tuples(STORES | JSON, JSON), max_size=2)))
def test_whatever_json_says_is_a_position_or_refused(value: Any) -> None:
    try:
        position = Position.from_text(packed(value))
    except hps.CursorError:
        return
    assert Position.from_text(position.to_text()) == position


@given(st.text())
def test_no_other_text_is_a_cursor(text: str) -> None:
    for given_text in (text, "hps1." + text):
        with pytest.raises(hps.CursorError):
            Position.from_text(given_text)


@pytest.mark.parametrize(
    "fields",
    [
        [2**32, 5, None, 0],
        [1, 2**64, None, 0],
        [1, -1, None, 0],
        [1, None, None, 0],
        [1, 5, None, 7],
        [1, 5, 6, CELLS],
        [1, True, None, 0],
        [1, 5.0, None, 0],
        [1, 5],
        [],
        5,
    ],
)
def test_numbers_are_checked(fields: Any) -> None:
    with pytest.raises(hps.CursorError):
        Position.from_text(packed([None, [["0" * 32, {"t": fields}]]]))


def test_a_text_that_would_fill_the_memory_is_not_unpacked() -> None:
    bomb = zlib.compress(b"[" * (100 << 20))
    with pytest.raises(hps.CursorError):
        Position.from_text("hps1." + base64.urlsafe_b64encode(bomb).decode())
