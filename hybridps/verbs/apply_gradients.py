"""`apply_gradients`: one step of the optimizer for each unique key, on the server, exactly once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hybridps import _core
from hybridps.errors import BadInputError
from hybridps.keys import KeysLike
from hybridps.verbs.batches import RowsLike, as_rows, as_step, check_reach
from hybridps.verbs.calls import Begun, Keys, Push, Rows, Site
from hybridps.verbs.catalog import Catalog, Handle, StoreFace, TableFace, TableT, check_mapping
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.reading import splits_of
from hybridps.verbs.warned import warn


@dataclass(frozen=True, slots=True)
class ApplyGradients(Push[bool]):
    """Sums of gradients; True if they had been applied before they were sent for the first time."""

    VERB = "apply_gradients"
    IS_TOGETHER = True

    tables: Sequence[tuple[int, Keys, Rows]]
    step: int | None

    @property
    def may_be_replay(self) -> bool:
        """As a step of a trainer that restarted."""
        return self.step is not None

    def run(self, site: Site) -> bool:
        """Room in the log, and syncs of the journal, may be waited for."""
        return site.store.apply_gradients(site.session, site.number, self.step, self.tables)

    def begin(self, wire: _core.ClientConnection, number: int, total: int) -> Begun:
        """Keys and gradients behind a header."""
        return wire.apply_gradients(number, self.step, self.tables, total)

    def finish(self, answer: _core.Answer, *, is_first: bool) -> bool:
        """Sent once and applied before: a replay."""
        return answer.duplicate and is_first


def apply_gradients(
    catalog: Catalog,
    handles: Sequence[Handle],
    keys: Sequence[KeysLike],
    gradients: Sequence[RowsLike],
    step: object,
) -> Steps[None]:
    """One push for all tables; with a step every server hears of it, so that all agree on it.

    Warns of the first step of this client that had been applied before.
    """
    number = as_step(step)
    splits = yield from splits_of(catalog, handles, keys)
    tables: dict[int, list[tuple[int, Keys, Rows]]] = {}
    if is_told := number is not None or catalog.tells_all:
        tables = {shard: [] for shard in range(catalog.shards)}
    for split, table_gradients in zip(splits, gradients, strict=True):
        rows = as_rows(split.batch, table_gradients, "gradients")
        parts = split.sums(rows)
        if catalog.wire_dtype == "float16":
            for keys_of, sums in parts.values():
                check_reach(split.batch.table, keys_of, sums)
        ref = split.batch.table
        for shard in range(catalog.shards):
            if shard in parts:
                tables.setdefault(shard, []).append((ref.ids[shard], *parts[shard]))
            elif is_told:
                tables[shard].append((ref.ids[shard], split.keys[:0], rows[:0]))
    replayed: list[bool] = yield [
        (shard, ApplyGradients(of_shard, number)) for shard, of_shard in sorted(tables.items())
    ]
    if number is None or not any(replayed) or catalog.has_warned_of_replay:
        return
    catalog.has_warned_of_replay = True
    names = ", ".join(repr(handle.name) for handle in handles)
    warn(
        f"table {names}: step {number} was applied before this client connected; it and others at"
        " or below the table's last step are acknowledged, not applied, and counted in"
        " duplicate_pushes"
    )


def split_pairs(batches: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """The keys and the gradients of {"item": (keys, gradients)}."""
    for name, pair in batches.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != len(("keys", "gradients")):
            raise BadInputError(f"table {name!r}: give a pair (keys, gradients)")
    return [pair[0] for pair in batches.values()], [pair[1] for pair in batches.values()]


class ApplyGradientsOfTable(TableFace):
    """`Table.apply_gradients`."""

    @verb
    def apply_gradients(
        self,
        keys: KeysLike,
        gradients: RowsLike,
        step: int | None = None,
        *,
        timeout: float | None = None,
    ) -> Run[None]:
        """Runs the optimizer once for each unique key; repeated keys are summed in float32 in order
        of occurrence, absent keys are created first. Applied exactly once. A row of which a number,
        slots included, would leave float32 (3.4e38, NaN) stays as it was and counts in
        rows_poisoned; all else is applied.

        Args:    gradients: float32, float16 or bfloat16, keys.shape + (dim,), finite.
                 step: grows from push to push; lets a restarted trainer replay its steps.
        Raises:  BadInputError, TableNotFoundError, StoreFullError, UnavailableError, DeadlineError.
        """
        steps = apply_gradients(self._catalog, [self._handle], [keys], [gradients], step)
        return self._run(steps, timeout)


class ApplyGradientsOfStore(StoreFace[TableT]):
    """`ParameterServer.apply_gradients`."""

    @verb
    def apply_gradients(
        self,
        batches: Mapping[str, tuple[KeysLike, RowsLike]],
        step: int | None = None,
        *,
        timeout: float | None = None,
    ) -> Run[None]:
        """`Table.apply_gradients` of several tables in one push; atomic on each server."""
        check_mapping(batches, "apply_gradients")
        keys, gradients = split_pairs(batches)
        names = list(batches)
        return self._run_by_name(apply_gradients, names, keys, gradients, step, timeout=timeout)
