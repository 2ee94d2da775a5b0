"""`alter` and `set_learning_rate`: live settings of a table; and the spec that they are part of."""

from dataclasses import dataclass
from typing import Any

from hybridps.admission import Admission, check_admission
from hybridps.errors import BadInputError, TableNotFoundError
from hybridps.expiry import Expiry, check_expiry
from hybridps.optimizers import at_least_zero
from hybridps.security.rights import Right
from hybridps.sizes import parse_size
from hybridps.types import TableSpec, check_dram
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import Catalog, Handle, TableFace, on_each, ref_of, resolve
from hybridps.verbs.face import Run, Steps, attribute, verb
from hybridps.verbs.hello import ADMISSION, EXPIRY
from hybridps.verbs.kinds import Lane, Order
from hybridps.verbs.open_table import Opened, OpenTable
from hybridps.verbs.specs import (
    fill_admission,
    fill_expiry,
    read_admission,
    read_expiry,
    strict_json,
)


class Keep:
    """Type of `KEEP`."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP = Keep()

Change = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SetLearningRate(Cold[None]):
    """The rate of later pushes."""

    VERB = "set_learning_rate"
    ORDER = Order.PUSH
    LANE = Lane.ORDERS
    RIGHT = Right.TRAIN

    table: int
    learning_rate: float

    def run(self, site: Site) -> None:
        """Writes the manifest."""
        site.store.alter(self.table, strict_json({"learning_rate": self.learning_rate}))


@dataclass(frozen=True, slots=True)
class Alter(Cold[None]):
    """`change` holds any of learning_rate, admission, dram, nvme, expiry; None lifts a cap, ends an
    expiry, and lets all keys in.
    """

    VERB = "alter"
    ORDER = Order.PUSH
    LANE = Lane.ORDERS
    RIGHT = Right.ADMIN

    table: int
    change: Change

    def fill(self, params: Any) -> None:
        """What is not named is kept, a cap of 0 is none."""
        params.table = self.table
        change = params.init("change")
        if "learning_rate" in self.change:
            change.learningRate.value = self.change["learning_rate"]
        if "admission" in self.change:
            fill_admission(change.admission.init("value"), self.change["admission"])
        for name in ("dram", "nvme"):
            if name in self.change:
                getattr(change, name).value = self.change[name] or 0
        if "expiry" in self.change:
            fill_expiry(change.expiry.init("value"), self.change["expiry"])

    def needs(self) -> tuple[str, ...]:
        """A server that does not know a setting would keep the one before."""
        return (self.VERB, *(name for name in (ADMISSION, EXPIRY) if name in self.change))

    @classmethod
    def read(cls, params: Any) -> "Alter":
        """As above."""
        change: Change = {}
        if params.change.learningRate.which() == "value":
            change["learning_rate"] = params.change.learningRate.value
        if params.change.admission.which() == "value":
            change["admission"] = read_admission(params.change.admission.value)
        for name in ("dram", "nvme"):
            cap = getattr(params.change, name)
            if cap.which() == "value":
                change[name] = cap.value or None
        if params.change.expiry.which() == "value":
            change["expiry"] = read_expiry(params.change.expiry.value).get("expiry")
        return cls(params.table, change)

    def run(self, site: Site) -> None:
        """Writes the manifest."""
        site.store.alter(self.table, strict_json(self.change))


def _checked(handle: Handle, check: Any, *args: Any) -> Any:
    try:
        return check(*args)
    except BadInputError as error:
        raise BadInputError(f"table {handle.name!r}: {error}") from None


def set_learning_rate(catalog: Catalog, handle: Handle, rate: object) -> Steps[None]:
    """Changes the live learning rate."""
    number = _checked(handle, at_least_zero, rate, "learning_rate")
    yield from on_each(catalog, handle, SetLearningRate, number)


def alter(catalog: Catalog, handle: Handle, asked: dict[str, object]) -> Steps[None]:
    """Changes live settings; KEEP keeps one, None lifts a cap."""
    change: Change = {}
    named = {name: value for name, value in asked.items() if value is not KEEP}
    for name, check in (("admission", check_admission), ("expiry", check_expiry)):
        if name in named:
            setting: Admission | Expiry | None = _checked(handle, check, named[name])
            change[name] = None if setting is None else setting.options()
    if "learning_rate" in named:
        rate = _checked(handle, at_least_zero, named["learning_rate"], "learning_rate")
        change["learning_rate"] = rate
    if "dram" in named:
        change["dram"] = _checked(handle, check_dram, named["dram"])
    if "nvme" in named:
        nvme = named["nvme"]
        change["nvme"] = None if nvme is None else _checked(handle, parse_size, nvme, "nvme")
    yield from on_each(catalog, handle, Alter, change)


def spec_of(catalog: Catalog, handle: Handle) -> Steps[TableSpec]:
    """The stored spec, live settings included."""
    ref = yield from resolve(catalog, handle)
    opened: list[Opened] = yield catalog.everywhere(OpenTable(ref.name))
    if ref_of(opened).ids != ref.ids:
        raise TableNotFoundError(f"table {ref.name!r} was dropped and made anew")
    return opened[0].spec


def dim_of(catalog: Catalog, handle: Handle) -> Steps[int]:
    """Columns of a row."""
    return (yield from resolve(catalog, handle)).dim


class SettingsOfTable(TableFace):
    """`Table.spec`, `dim`, `alter` and `set_learning_rate`."""

    @attribute
    def spec(self) -> Run[TableSpec]:
        """The stored spec, live settings included, as the server has it now."""
        return self._run(spec_of(self._catalog, self._handle), None)

    @attribute
    def dim(self) -> Run[int]:
        """Columns of a row."""
        return self._run(dim_of(self._catalog, self._handle), None)

    @verb
    def set_learning_rate(self, learning_rate: float, *, timeout: float | None = None) -> Run[None]:
        """Changes the learning rate of later pushes; it survives a restart."""
        return self._run(set_learning_rate(self._catalog, self._handle, learning_rate), timeout)

    @verb
    def alter(
        self,
        *,
        learning_rate: float | Keep = KEEP,
        dram: int | str | Keep | None = KEEP,
        nvme: int | str | Keep | None = KEEP,
        expiry: Expiry | Keep | None = KEEP,
        admission: Admission | Keep | None = KEEP,
        timeout: float | None = None,
    ) -> Run[None]:
        """Changes live settings; what is not named stays, None lifts a byte cap and ends an expiry.

        `admission` holds for reads from now on: rows that are there stay, and so do counts, except
        that None lets all keys in and forgets them.
        """
        asked: dict[str, object] = {"expiry": expiry, "admission": admission}
        asked |= {"learning_rate": learning_rate, "dram": dram, "nvme": nvme}
        return self._run(alter(self._catalog, self._handle, asked), timeout)
