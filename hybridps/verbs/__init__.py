"""The verbs: a file each, or each family. What is asked, how it is written and read on the wire,
what it may overlap with, what the store does, what a user calls, and how results of several servers
become one.

Here is the only list of them. A new verb is a method of the schema, a method of the engine, a file
of this package with a line below, and its place in docs/protocol.md.
"""

from collections.abc import Mapping
from typing import Any, Final

from hybridps.verbs.apply_gradients import (
    ApplyGradients,
    ApplyGradientsOfStore,
    ApplyGradientsOfTable,
)
from hybridps.verbs.assign import Assign, AssignOfTable
from hybridps.verbs.calls import Call
from hybridps.verbs.catalog import TableT
from hybridps.verbs.changes import Changes, NowOf
from hybridps.verbs.checkpoint import CheckpointOfStore
from hybridps.verbs.counters import CountersOfStore, CountersOfTable, Stats, TableStats
from hybridps.verbs.create_table import CreateTable, CreateTableOfStore
from hybridps.verbs.expire import Expire, ExpireOfTable
from hybridps.verbs.export_to import FilesOfTable
from hybridps.verbs.flush import Flush, FlushOfStore
from hybridps.verbs.hello import ADMISSION, EXPIRY, SYNC_WORKERS, WIRE_DTYPE, Hello
from hybridps.verbs.inspect import Inspect, InspectOfTable
from hybridps.verbs.jobs import CheckpointJob, RestoreJob
from hybridps.verbs.listing import KeysOf, ListingOfTable, Size
from hybridps.verbs.lookup import Lookup, LookupOfStore, LookupOfTable
from hybridps.verbs.lookup_or_insert import (
    LookupOrInsert,
    LookupOrInsertOfStore,
    LookupOrInsertOfTable,
)
from hybridps.verbs.open_table import OpenTable
from hybridps.verbs.pooled import LookupPooled
from hybridps.verbs.prefetch import Prefetch, PrefetchOfStore
from hybridps.verbs.pull import ChangesOfStore
from hybridps.verbs.remove import Remove, RemoveOfTable
from hybridps.verbs.scatter import Scatter, ScatterOfTable
from hybridps.verbs.scrub import Scrub, ScrubOfStore
from hybridps.verbs.settings import Alter, SetLearningRate, SettingsOfTable
from hybridps.verbs.staleness import Staleness, StalenessOfStore
from hybridps.verbs.statistics import StatisticsOf, StatisticsOfTable
from hybridps.verbs.tables import DropTable, ListTables, TablesOfStore
from hybridps.verbs.whole import ExportRows, ImportRows

_CALLS: Final[tuple[type[Call[Any]], ...]] = (
    *(Lookup, LookupOrInsert, ApplyGradients, Hello, Prefetch, Assign, Remove),
    *(CreateTable, OpenTable, ListTables, DropTable, SetLearningRate, Alter),
    *(Size, KeysOf, TableStats, Stats, Flush, LookupPooled, Inspect, Scrub),
    *(NowOf, Changes),
    *(Scatter, StatisticsOf, Staleness, ImportRows, ExportRows, Expire),
    *(CheckpointJob, RestoreJob),
)
# By their names in the schema.
VERBS: Final[Mapping[str, type[Call[Any]]]] = {call.method(): call for call in _CALLS}
# What a server of this version tells in hello.
FEATURES: Final = frozenset(
    (WIRE_DTYPE, SYNC_WORKERS, ADMISSION, EXPIRY, *(call.VERB for call in _CALLS))
)


class TableVerbs(
    LookupOfTable,
    LookupOrInsertOfTable,
    ApplyGradientsOfTable,
    AssignOfTable,
    ScatterOfTable,
    RemoveOfTable,
    SettingsOfTable,
    ListingOfTable,
    CountersOfTable,
    InspectOfTable,
    StatisticsOfTable,
    FilesOfTable,
    ExpireOfTable,
):
    """All verbs of a table."""


class StoreVerbs(
    LookupOfStore[TableT],
    LookupOrInsertOfStore[TableT],
    ApplyGradientsOfStore[TableT],
    PrefetchOfStore[TableT],
    CreateTableOfStore[TableT],
    TablesOfStore[TableT],
    CountersOfStore[TableT],
    FlushOfStore[TableT],
    ScrubOfStore[TableT],
    ChangesOfStore[TableT],
    StalenessOfStore[TableT],
    CheckpointOfStore[TableT],
):
    """All verbs of a store, or of all servers of a client."""
