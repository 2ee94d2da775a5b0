"""`table`: a table by its name. Every verb of a table begins with it, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hybridps.security.rights import Right
from hybridps.types import TableSpec
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.specs import fill_spec, spec_json


@dataclass(frozen=True)
class Opened:
    """A table as one server knows it."""

    id: int
    # The engine's JSON.
    stored: str
    # Live settings in which the asked spec differs from the stored one.
    warnings: Sequence[str] = ()

    @cached_property
    def spec(self) -> TableSpec:
        """The stored spec, live settings included."""
        return TableSpec.from_json(self.stored)

    def fill(self, info: Any) -> None:
        """Server: writes it into a `TableInfo` of the schema."""
        info.id = self.id
        info.warnings = self.warnings
        fill_spec(info.init("spec"), self.stored)

    @classmethod
    def read(cls, info: Any) -> "Opened":
        """Client: what a server wrote."""
        return cls(info.id, spec_json(info.spec, "client"), list(info.warnings))


@dataclass(frozen=True, slots=True)
class OpenTable(Cold[Opened]):
    """The table of that name."""

    VERB = "table"
    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    name: str

    def run(self, site: Site) -> Opened:
        """From the catalog."""
        return Opened(*site.store.table(self.name))

    @classmethod
    def answer(cls, results: Any, value: Opened) -> None:
        """Id and stored spec."""
        value.fill(results.init("table"))

    @classmethod
    def result(cls, results: Any) -> Opened:
        """As above."""
        return Opened.read(results.table)
