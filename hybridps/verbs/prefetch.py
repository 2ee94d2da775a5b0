"""`prefetch`: looks ahead. The store brings rows into DRAM by itself, while the caller goes on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridps import _core
from hybridps.keys import KeysLike
from hybridps.security.rights import Right
from hybridps.verbs.calls import Begun, Hot, Keys, Site
from hybridps.verbs.catalog import Catalog, Handle, StoreFace, TableT, check_mapping
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Cut, Lane, Order
from hybridps.verbs.reading import splits_of


@dataclass(frozen=True, slots=True)
class Prefetch(Hot[None]):
    """The engine takes the keys, and brings the rows by itself."""

    VERB = "prefetch"
    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ
    CUT = Cut.CALLS
    IS_INSTANT = True

    tables: Sequence[tuple[int, Keys]]

    def run(self, site: Site) -> None:
        """Waits for nothing."""
        site.store.prefetch(self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys behind a header."""
        return wire.prefetch(self.tables)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> None:
        """The keys were taken."""


def prefetch(catalog: Catalog, handles: Sequence[Handle], keys: Sequence[KeysLike]) -> Steps[None]:
    """Warms keys."""
    splits = yield from splits_of(catalog, handles, keys)
    tables: dict[int, list[tuple[int, Keys]]] = {}
    for split in splits:
        for shard in split.shards():
            table = split.batch.table.ids[shard], split.keys[split.part(shard)]
            tables.setdefault(shard, []).append(table)
    yield [(shard, Prefetch(of_shard)) for shard, of_shard in sorted(tables.items())]


class PrefetchOfStore(StoreFace[TableT]):
    """`ParameterServer.prefetch`."""

    @verb
    def prefetch(
        self, batches: Mapping[str, KeysLike], *, timeout: float | None = None
    ) -> Run[None]:
        """Looks ahead: brings the rows of these keys into DRAM; never inserts."""
        check_mapping(batches, "prefetch")
        names, keys = list(batches), list(batches.values())
        return self._run_by_name(prefetch, names, keys, timeout=timeout)
