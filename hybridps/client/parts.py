"""A call that does not fit one message, in parts that do.

A push becomes an announcement without arrays and then parts of it, which the server applies as one;
a prefetch becomes several. Reads come cut already (`verbs`), since their replies decide. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hybridps.errors import BadInputError
from hybridps.verbs.calls import Arrays, Call, Hot, ServerInfo
from hybridps.verbs.kinds import Cut

# Bytes of a call beside its arrays; generous, the server's limit is a round number.
_HEADER_BYTES: Final = 1024
_TABLE_BYTES: Final = 64
# Arrays of one part: some are on their way while others are taken in, and none keeps small calls
# of other clients waiting for long.
PART_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """What goes in one message. `total`: bytes of all parts of the push it belongs to, or 0."""

    call: Call[Any]
    total: int = 0
    # The parts behind it wait until the server has room for them.
    is_announcement: bool = False


def parts_of(info: ServerInfo, call: Call[Any], where: str) -> list[Part]:
    """The call as the server takes it. Raises BadInputError for what it never would."""
    if not isinstance(call, Hot):
        return [Part(call)]
    tables = call.tables
    keys = arrays_bytes = 0
    for table in tables:
        keys += len(table[1])
        for array in table[1:]:
            if array is not None:
                arrays_bytes += array.nbytes
    size = _HEADER_BYTES + _TABLE_BYTES * len(tables) + arrays_bytes
    if keys <= info.keys_limit and size <= info.frame_limit:
        return [Part(call)]
    if call.CUT is Cut.NEVER or len(tables) > info.keys_limit:
        raise BadInputError(
            f"{call.spoken()} holds {keys} keys of {len(tables)} tables in {size} bytes for server"
            f" {where}, which takes {info.keys_limit} keys and {info.frame_limit} bytes in one"
            " call; split the batch, or raise keys_limit or frame_limit in the server's config"
        )
    room = max(1, min(PART_BYTES, info.frame_limit - _HEADER_BYTES) - _TABLE_BYTES * len(tables))
    cut = [call.of(part) for part in _cut(tables, room, info.keys_limit)]
    if call.CUT is Cut.CALLS:
        return [Part(part) for part in cut]
    nothing = [_rows(table, slice(0, 0)) for table in tables]
    announcement = Part(call.of(nothing), arrays_bytes, is_announcement=True)
    return [announcement, *(Part(part, arrays_bytes) for part in cut)]


def _cut(tables: Sequence[Arrays], room_bytes: int, room_keys: int) -> Iterator[list[Arrays]]:
    """Runs of rows that fit, in order; a table without rows goes with its neighbour."""
    part: list[Arrays] = []
    left_bytes, left_keys = room_bytes, room_keys
    for table in tables:
        keys, row_bytes, start = table[1], sum(array[:1].nbytes for array in table[1:]), 0
        while True:
            count = min(len(keys) - start, left_bytes // max(row_bytes, 8), left_keys)
            if not count and start < len(keys) and not part:
                count = 1  # A row that is larger than a part: the server will say so.
            if count or not len(keys):
                part.append(_rows(table, slice(start, start + count)))
                left_bytes, left_keys = left_bytes - count * row_bytes, left_keys - count
                start += count
            if start == len(keys):
                break
            yield part
            part, left_bytes, left_keys = [], room_bytes, room_keys
    if part:
        yield part


def _rows(table: Arrays, rows: slice) -> Arrays:
    return (table[0], *(array[rows] for array in table[1:]))
