"""`assign`: sets values as they are given."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridps import _core
from hybridps.keys import KeysLike
from hybridps.verbs.batches import RowsLike, as_rows, check_finite
from hybridps.verbs.calls import Begun, Keys, Push, Rows, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.reading import splits_of


@dataclass(frozen=True, slots=True)
class Assign(Push[None]):
    """Rows of one table."""

    VERB = "assign"

    tables: Sequence[tuple[int, Keys, Rows]]

    def run(self, site: Site) -> None:
        """Room in the log, and syncs of the journal, may be waited for."""
        site.store.assign(site.session, site.number, self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys and rows behind a header."""
        return wire.assign(number, self.tables, total)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> None:
        """They are set."""


def assign(catalog: Catalog, handle: Handle, keys: KeysLike, rows: RowsLike) -> Steps[None]:
    """Sets values; of repeated keys the last."""
    (split,) = yield from splits_of(catalog, [handle], [keys])
    last = split.last(check_finite(split.batch, as_rows(split.batch, rows, "rows"), "rows"))
    ids = split.batch.table.ids
    parts = [(shard, split.part(shard)) for shard in split.shards()]
    yield [(shard, Assign([(ids[shard], split.keys[part], last[part])])) for shard, part in parts]


class AssignOfTable(TableFace):
    """`Table.assign`."""

    @verb
    def assign(self, keys: KeysLike, rows: RowsLike, *, timeout: float | None = None) -> Run[None]:
        """Sets values; absent keys get fresh slots, present ones keep theirs; the last repeat wins.

        Args:    rows: float32, float16 or bfloat16, keys.shape + (dim,), finite.
        Raises:  as `apply_gradients`.
        """
        return self._run(assign(self._catalog, self._handle, keys, rows), timeout)
