"""How much DRAM a table needs: the index whole, and the share of rows one wants hot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import hybridps as hps

HEADER_BYTES = 32  # key, sequence, last seen, frequency, checksum of one record
ALIGNMENT_BYTES = 16
INDEX_BYTES_PER_ROW = 12  # an 8-byte entry at the loads a growing hash index passes through
TABLE_FLOOR_BYTES = 1 << 20
STORE_FLOOR_BYTES = 16 << 20  # a store asks for twice its buffers; caps of tables bound the rows
BUFFER_BYTES = 8 << 20  # append and read buffers, statistics: not a matter of rows
FLOATS = {hps.SGD: 1, hps.Adagrad: 2, hps.Adam: 3}  # vectors a row holds, value included


@dataclass(frozen=True)
class TableSize:
    """A table of `rows` rows under `spec`."""

    spec: hps.TableSpec
    rows: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one record: value, optimizer slots, header."""
        dim = self.spec.dim
        floats = dim + 1 if isinstance(self.spec.optimizer, hps.RowWiseAdagrad) else (
            dim * FLOATS[type(self.spec.optimizer)]
        )  # fmt: skip
        body = 4 * floats
        return HEADER_BYTES + -(-body // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    @property
    def index_bytes(self) -> int:
        """Bytes of the hash index, which never leaves DRAM."""
        return self.rows * INDEX_BYTES_PER_ROW

    def table_bytes(self, share: float) -> int:
        """A cap that holds the index and this share of the rows."""
        wanted = self.index_bytes + int(share * self.rows * self.row_bytes)
        return max(TABLE_FLOOR_BYTES, wanted)


def store_bytes(tables: Iterable[TableSize], share: float) -> int:
    """DRAM of a store that holds every index and this share of all rows."""
    return max(STORE_FLOOR_BYTES, BUFFER_BYTES + sum(t.table_bytes(share) for t in tables))


def capped(size: TableSize, share: float) -> hps.TableSpec:
    """The spec with a cap of its own, so that small tables spill too."""
    return dataclasses.replace(size.spec, dram=size.table_bytes(share))


def tiered(stats: Mapping[str, int], share: float) -> int:
    """DRAM for the index and a share of the rows of a store that now holds all of them."""
    rows = stats["dram_bytes"] - stats["index_bytes"]
    return max(STORE_FLOOR_BYTES, BUFFER_BYTES + stats["index_bytes"] + int(share * rows))
