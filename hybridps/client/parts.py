"""A call that does not fit one message, in parts that do.

A push becomes an announcement without arrays and then parts of it, which the server applies as one;
a prefetch becomes several. Reads come cut already (`verbs`), since their replies decide. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from hybridps.client import calls
from hybridps.client.calls import Call
from hybridps.errors import BadInputError

if TYPE_CHECKING:
    from hybridps.client.messages import ServerInfo

# Bytes of a call beside its arrays; generous, the server's limit is a round number.
_HEADER_BYTES: Final = 1024
_TABLE_BYTES: Final = 64
# Arrays of one part: some are on their way while others are taken in, and none keeps small calls
# of other clients waiting for long.
PART_BYTES: Final = 8 << 20

# A table's id, its keys, and, if it has any, values of as many rows (None: not in this call).
_Table = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """What goes in one message. `total`: bytes of all parts of the push it belongs to, or 0."""

    call: Call
    total: int = 0
    # The parts behind it wait until the server has room for them.
    is_announcement: bool = False


def parts_of(info: ServerInfo, call: Call, verb: str, where: str) -> list[Part]:
    """The call as the server takes it. Raises BadInputError for what it never would."""
    tables = _tables_of(call)
    keys = arrays_bytes = 0
    for table in tables:
        keys += len(table[1])
        for array in table[1:]:
            if array is not None:
                arrays_bytes += array.nbytes
    size = _HEADER_BYTES + _TABLE_BYTES * len(tables) + arrays_bytes
    if keys <= info.keys_limit and size <= info.frame_limit:
        return [Part(call)]
    if isinstance(call, (calls.Lookup, calls.LookupOrInsert)) or len(tables) > info.keys_limit:
        raise BadInputError(
            f"{verb} holds {keys} keys of {len(tables)} tables in {size} bytes for server {where},"
            f" which takes {info.keys_limit} keys and {info.frame_limit} bytes in one call; split"
            " the batch, or raise keys_limit or frame_limit in the server's config"
        )
    room = max(1, min(PART_BYTES, info.frame_limit - _HEADER_BYTES) - _TABLE_BYTES * len(tables))
    cut = [_with(call, part) for part in _cut(tables, room, info.keys_limit)]
    if isinstance(call, calls.Prefetch):
        return [Part(part) for part in cut]
    nothing = [_rows(table, slice(0, 0)) for table in tables]
    announcement = Part(_with(call, nothing), arrays_bytes, is_announcement=True)
    return [announcement, *(Part(part, arrays_bytes) for part in cut)]


def _tables_of(call: Call) -> Sequence[_Table]:
    match call:
        case calls.Assign(table, keys, rows):
            return [(table, keys, rows)]
        case calls.Remove(table, keys):
            return [(table, keys)]
        case calls.Lookup() | calls.LookupOrInsert() | calls.ApplyGradients() | calls.Prefetch():
            return call.tables
    return ()


def _with(call: Call, tables: Sequence[_Table]) -> Call:
    """The call, of these tables instead of its own."""
    match call:
        case calls.Assign():
            ((table, keys, rows),) = tables
            return calls.Assign(table, keys, rows)
        case calls.Remove():
            ((table, keys),) = tables
            return calls.Remove(table, keys)
        case calls.Prefetch():
            return calls.Prefetch([(table, keys) for table, keys in tables])
        case calls.ApplyGradients():
            return replace(call, tables=tables)
    raise TypeError(f"no part of {type(call).__name__}")


def _cut(tables: Sequence[_Table], room_bytes: int, room_keys: int) -> Iterator[list[_Table]]:
    """Runs of rows that fit, in order; a table without rows goes with its neighbour."""
    part: list[_Table] = []
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


def _rows(table: _Table, rows: slice) -> _Table:
    return (table[0], *(array[rows] for array in table[1:]))
