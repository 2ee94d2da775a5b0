"""`remove`: rows, slots and statistics go; what was removed starts anew if it is seen again."""

from collections.abc import Sequence
from dataclasses import dataclass

from hybridps import _core
from hybridps.keys import KeysLike
from hybridps.verbs.calls import Begun, Keys, Push, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.reading import splits_of


@dataclass(frozen=True, slots=True)
class Remove(Push[int]):
    """Keys of one table; how many of them had a row."""

    VERB = "remove"

    tables: Sequence[tuple[int, Keys]]

    def run(self, site: Site) -> int:
        """Room in the log, and syncs of the journal, may be waited for."""
        return site.store.remove(site.session, site.number, self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys behind a header."""
        return wire.remove(number, self.tables, total)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> int:
        """As many as were there."""
        return answer.removed


def remove(catalog: Catalog, handle: Handle, keys: KeysLike) -> Steps[int]:
    """Rows removed."""
    (split,) = yield from splits_of(catalog, [handle], [keys])
    ids = split.batch.table.ids
    removed: list[int] = yield [
        (shard, Remove([(ids[shard], split.keys[split.part(shard)])])) for shard in split.shards()
    ]
    return sum(removed)


class RemoveOfTable(TableFace):
    """`Table.remove`."""

    @verb
    def remove(self, keys: KeysLike, *, timeout: float | None = None) -> Run[int]:
        """Removes rows, slots and statistics; returns how many there were."""
        return self._run(remove(self._catalog, self._handle, keys), timeout)
