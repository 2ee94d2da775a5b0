"""What a cursor of `changes` says: how far each table of each server is known. As text it may be
kept anywhere; whoever reads one trusts nothing in it.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from hybridps.errors import CursorError
from hybridps.placement import CELLS

_PREFIX: Final = "hps1."
_SEQUENCE_MAX: Final = (1 << 64) - 1
_TABLE_MAX: Final = (1 << 32) - 1
# Of the JSON text: a hundred bytes a table.
_TEXT_MAX_BYTES: Final = 64 << 20
_STORE: Final = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Progress:
    """One table on one server."""

    id: int
    # All changes up to here are known; None: its rows are being copied.
    since: int | None
    # A pass over its cells is under way, which began at this sequence and has come so far.
    now: int | None = None
    at: int = 0


@dataclass(frozen=True, slots=True)
class Shard:
    """One server: which store, and its tables that are followed."""

    store: str
    tables: Mapping[str, Progress]

    def with_table(self, name: str, progress: Progress | None) -> "Shard":
        """The same with this instead of what was known of a table; None: it is gone."""
        tables = {**self.tables, name: progress} if progress is not None else {**self.tables}
        if progress is None:
            tables.pop(name, None)
        return Shard(self.store, tables)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a pull is: of these tables by name, or of all."""

    names: tuple[str, ...] | None
    shards: tuple[Shard, ...]

    def with_table(self, shard: int, name: str, progress: Progress | None) -> "Position":
        """The same with this progress."""
        shards = list(self.shards)
        shards[shard] = shards[shard].with_table(name, progress)
        return replace(self, shards=tuple(shards))

    def to_text(self) -> str:
        """The cursor that users keep."""
        shards = [
            [shard.store, {n: [t.id, t.since, t.now, t.at] for n, t in shard.tables.items()}]
            for shard in self.shards
        ]
        text = json.dumps([self.names, shards], separators=(",", ":"))
        return _PREFIX + base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()

    @classmethod
    def from_text(cls, text: str) -> "Position":
        """Raises: CursorError for what no `to_text` wrote."""
        try:
            names, shards = json.loads(_unpacked(text))
            return cls(
                None if names is None else tuple(_name(name) for name in names),
                tuple(_shard(*shard) for shard in shards),
            )
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            told = text if len(text) < _TOLD_MAX else f"{text[:_TOLD_MAX]}..."
            raise CursorError(
                f"since is {told!r}, which is no cursor ({error}); give what cursor() or a change's"
                " cursor was, unaltered, or begin with since=None"
            ) from None


_TOLD_MAX: Final = 40


def _unpacked(text: str) -> bytes:
    if not text.startswith(_PREFIX):
        raise ValueError(f"it does not begin with {_PREFIX}")
    try:
        packed = base64.b64decode(text[len(_PREFIX) :], altchars=b"-_", validate=True)
        unpacking = zlib.decompressobj()
        unpacked = unpacking.decompress(packed, _TEXT_MAX_BYTES)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(str(error)) from None
    if not unpacking.eof or unpacking.unused_data:
        raise ValueError("it is cut short, or too long")
    return unpacked


def _shard(store: Any, tables: Any) -> Shard:
    if not isinstance(store, str) or not _STORE.fullmatch(store):
        raise ValueError("it names no store")
    return Shard(store, {_name(name): _progress(*fields) for name, fields in tables.items()})


def _progress(table: Any, since: Any, now: Any, at: Any) -> Progress:
    since = None if since is None else _number(since, _SEQUENCE_MAX)
    now = None if now is None else _number(now, _SEQUENCE_MAX)
    if (since is None or at) and now is None:
        raise ValueError("it is inside of no pass")
    return Progress(_number(table, _TABLE_MAX), since, now, _number(at, CELLS - 1))


def _number(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError("a number is out of its range")
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a table has no name")
    return value
