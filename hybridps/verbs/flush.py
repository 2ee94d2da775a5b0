"""`flush`: what was acknowledged is on the device."""

from dataclasses import dataclass

from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.catalog import Catalog, StoreFace, TableT
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order


@dataclass(frozen=True, slots=True)
class Flush(Cold[None]):
    """Answered when it is done."""

    VERB = "flush"
    ORDER = Order.FREE
    LANE = Lane.ORDERS
    RIGHT = Right.TRAIN

    def run(self, site: Site) -> None:
        """Syncs."""
        site.store.flush()


def flush(catalog: Catalog) -> Steps[None]:
    """Makes durable what was acknowledged."""
    yield catalog.everywhere(Flush())


class FlushOfStore(StoreFace[TableT]):
    """`ParameterServer.flush`."""

    @verb
    def flush(self, *, timeout: float | None = None) -> Run[None]:
        """Returns when all that was acknowledged before is on the device."""
        return Run(flush(self._catalog), timeout)
