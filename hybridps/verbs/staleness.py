"""`staleness`: how far a replica is behind the one that it follows."""

from dataclasses import dataclass
from typing import Any

from hybridps.errors import BadInputError, StaleError
from hybridps.security.rights import Right
from hybridps.verbs.calls import NEVER_MS, Cold, Site
from hybridps.verbs.catalog import Catalog, StoreFace, TableT
from hybridps.verbs.face import Run, Steps, verb
from hybridps.verbs.kinds import Lane, Order


@dataclass(frozen=True, slots=True)
class Staleness(Cold[int]):
    """Milliseconds that one server is behind."""

    VERB = "staleness"
    ORDER = Order.READ
    LANE = Lane.LOOKS
    RIGHT = Right.READ

    def run(self, site: Site) -> int:
        """From memory."""
        return site.standing().staleness_ms

    @classmethod
    def answer(cls, results: Any, value: int) -> None:
        """The number."""
        results.milliseconds = value

    @classmethod
    def result(cls, results: Any) -> int:
        """As above."""
        return int(results.milliseconds)


def staleness(catalog: Catalog) -> Steps[float]:
    """Seconds that the server most behind is."""
    behind_ms: int = max((yield catalog.everywhere(Staleness())))
    return float("inf") if behind_ms >= NEVER_MS else behind_ms / 1000


def check_staleness(catalog: Catalog, most: object) -> Steps[None]:
    """Raises StaleError where a server is behind by more than `most` seconds; None allows all."""
    if most is None:
        return
    if isinstance(most, bool) or not isinstance(most, int | float) or not most >= 0:
        raise BadInputError(f"max_staleness is {most!r}; give seconds, or None")
    behind = yield from staleness(catalog)
    if behind > most:
        raise StaleError(
            f"the replica is {behind:.3f} s behind, max_staleness is {most}; wait, allow more, or"
            " ask the one that it follows"
        )


class StalenessOfStore(StoreFace[TableT]):
    """`ParameterServer.staleness`."""

    @verb
    def staleness(self, *, timeout: float | None = None) -> Run[float]:
        """Seconds that replicas are behind the ones that they follow: what was pushed there so long
        ago is here. The largest of all servers; 0.0 where they are no replicas, infinite for one
        that never had all rows.
        """
        return Run(staleness(self._catalog), timeout)
