"""`scatter`: arithmetic on the values of rows, in place: scatter_add and its family.

Semantics follow TFPlus: an absent key first gets its initial row, then the operation is applied;
optimizer slots stay. Unlike there, repeated keys are applied in the order of the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.keys import KeysLike
from hybridps.verbs.assign import assign
from hybridps.verbs.batches import Batch, RowsLike, as_rows, check_finite
from hybridps.verbs.calls import Begun, Keys, Push, Rows, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.reading import splits_of


class Operation(IntEnum):
    """What is done with an operand, by its number in the schema."""

    ADD = 0
    SUB = 1
    MUL = 2
    DIV = 3
    MIN = 4
    MAX = 5


@dataclass(frozen=True, slots=True)
class Scatter(Push[None]):
    """Operands for values of one table; keys may repeat."""

    VERB = "scatter"

    tables: Sequence[tuple[int, Keys, Rows]]
    operation: Operation

    def run(self, site: Site) -> None:
        """Room in the log, and syncs of the journal, may be waited for."""
        site.store.scatter(site.session, site.number, self.operation, self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys and operands behind a header."""
        return wire.scatter(number, self.operation, self.tables, total)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> None:
        """They are applied."""


def _check_divisors(of: Batch, rows: Rows) -> None:
    """Nothing can be divided by zero, whatever the rows hold."""
    if rows.all():
        return
    row, column = np.argwhere(rows == 0)[0]
    raise BadInputError(
        f"table {of.table.name!r}: rows of key {of.keys[row]} hold {rows[row, column]} at column"
        f" {column}; no value can be divided by it: leave the key out, or give 1 where a column is"
        " to stay"
    )


def scatter(
    catalog: Catalog, handle: Handle, keys: KeysLike, rows: RowsLike, operation: Operation
) -> Steps[None]:
    """Sends each server the operands of its keys, repeats and their order included."""
    (split,) = yield from splits_of(catalog, [handle], [keys])
    operands = check_finite(split.batch, as_rows(split.batch, rows, "rows"), "rows")
    if operation is Operation.DIV:
        _check_divisors(split.batch, operands)
    ids = split.batch.table.ids
    parts = split.occurrences(operands)
    yield [(shard, Scatter([(ids[shard], *part)], operation)) for shard, part in parts.items()]


class ScatterOfTable(TableFace):
    """`Table.scatter_update` and the rest of its family.

    All: keys of any shape, rows float32, float16 or bfloat16 of keys.shape + (dim,), finite. An
    absent key gets its initial row first; slots, counts and last use stay. Repeated keys are
    applied one after the other, in float32. Exactly once, and all or nothing on each server, but
    that a row which would not stay finite keeps its value and counts in rows_poisoned. Raises as
    `apply_gradients`.
    """

    def _scatter(
        self, keys: KeysLike, rows: RowsLike, operation: Operation, timeout: float | None
    ) -> Run[None]:
        return self._run(scatter(self._catalog, self._handle, keys, rows, operation), timeout)

    @verb
    def scatter_update(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """Sets values: `assign` by the name that TensorFlow has for it; the last repeat wins."""
        return self._run(assign(self._catalog, self._handle, keys, rows), timeout)

    @verb
    def scatter_add(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """value += row, as `numpy.add.at`; absent keys begin at their initial row.

        Args:    rows: float32, float16 or bfloat16, keys.shape + (dim,), finite.
        Raises:  as `apply_gradients`. A value that would not stay finite stays as it was and counts
                 in rows_poisoned.
        """
        return self._scatter(keys, rows, Operation.ADD, timeout)

    @verb
    def scatter_sub(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """value -= row; else as `scatter_add`."""
        return self._scatter(keys, rows, Operation.SUB, timeout)

    @verb
    def scatter_mul(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """value *= row; else as `scatter_add`."""
        return self._scatter(keys, rows, Operation.MUL, timeout)

    @verb
    def scatter_div(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """value /= row; a row that holds 0 is bad input; else as `scatter_add`."""
        return self._scatter(keys, rows, Operation.DIV, timeout)

    @verb
    def scatter_min(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """value = min(value, row), column by column; else as `scatter_add`."""
        return self._scatter(keys, rows, Operation.MIN, timeout)

    @verb
    def scatter_max(
        self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None
    ) -> Run[None]:
        """value = max(value, row), column by column; else as `scatter_add`."""
        return self._scatter(keys, rows, Operation.MAX, timeout)
