"""`create_table`: a table of a spec, on every server; an equal one that exists is opened."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hybridps.errors import BadInputError
from hybridps.security.rights import Right
from hybridps.types import TableSpec
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import Catalog, Handle, StoreFace, TableT, ref_of
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.hello import ADMISSION, EXPIRY
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.open_table import Opened
from hybridps.verbs.specs import fill_spec, spec_json
from hybridps.verbs.warned import warn


@dataclass(frozen=True, slots=True)
class CreateTable(Cold[Opened]):
    """A table of this spec, the engine's JSON."""

    VERB = "create_table"
    ORDER = Order.PUSH
    LANE = Lane.ORDERS
    RIGHT = Right.TRAIN

    spec: str

    def fill(self, params: Any) -> None:
        """The spec, member by member."""
        fill_spec(params.init("spec"), self.spec)

    @classmethod
    def read(cls, params: Any) -> "CreateTable":
        """As above."""
        return cls(spec_json(params.spec))

    def needs(self) -> tuple[str, ...]:
        """A server that does not know a setting would make a table without."""
        spec = json.loads(self.spec)
        return (self.VERB, *(name for name in (ADMISSION, EXPIRY) if spec.get(name) is not None))

    def touches(self) -> Sequence[str]:
        """The table that is to be."""
        return (str(json.loads(self.spec)["name"]),)

    def run(self, site: Site) -> Opened:
        """Writes the manifest."""
        return Opened(*site.store.create_table(self.spec))

    @classmethod
    def answer(cls, results: Any, value: Opened) -> None:
        """Id, stored spec, and what differs."""
        value.fill(results.init("table"))

    @classmethod
    def result(cls, results: Any) -> Opened:
        """As above."""
        return Opened.read(results.table)


def create_table(catalog: Catalog, spec: TableSpec) -> Steps[Handle]:
    """A handle; warns of each live setting that differs from the stored one."""
    if not isinstance(spec, TableSpec):
        raise BadInputError(f"spec is {spec!r}; give an hps.TableSpec")
    opened: Sequence[Opened] = yield catalog.everywhere(CreateTable(spec.to_json()))
    handle = Handle(spec.name, ref_of(opened))
    catalog.remember(handle)
    for text in dict.fromkeys(text for table in opened for text in table.warnings):
        warn(
            f"table {spec.name!r}: {text}; the stored value stays (Table.alter changes"
            " learning_rate, admission, dram, nvme and expiry)"
        )
    return handle


class CreateTableOfStore(StoreFace[TableT]):
    """`ParameterServer.create_table`."""

    @verb
    def create_table(self, spec: TableSpec, *, timeout: float | None = None) -> Run[TableT]:
        """Creates the table, or opens an equal one; a UserWarning names each live difference.

        Raises: TableMismatchError naming each difference in shape, BadInputError, StoreFullError.
        """
        return Run(self._create_table(spec), timeout)

    def _create_table(self, spec: TableSpec) -> Steps[TableT]:
        return self._table((yield from create_table(self._catalog, spec)))
