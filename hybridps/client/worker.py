"""A client as one of several workers that push together: `connect(mode="sync", ...)`. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from hybridps.errors import ConfigError
from hybridps.verbs.calls import Hot, ServerInfo

# As far as a worker may be ahead: a server holds what the others have not pushed yet.
STALENESS_MAX: Final = 32


@dataclass(frozen=True, slots=True)
class Worker:
    """Which of how many workers this is, and how many rounds it may be ahead of the others."""

    workers: int
    rank: int
    staleness: int = 0

    @property
    def place(self) -> tuple[int, int] | None:
        """How many there are, and its rank, as hello says them; None for a copy."""
        return (self.workers, self.rank) if self.workers else None


# A copy of a worker, in another process: it has no rank, since two of one rank would push.
COPY: Final = Worker(0, 0)


def worker_of(
    mode: object, workers: object, rank: object, staleness: object = None
) -> Worker | None:
    """The worker that `connect` is to make; None: a client that pushes alone.

    Raises: ConfigError.
    """
    if mode not in ("async", "sync"):
        raise ConfigError(f'mode is {mode!r}; give "async" or "sync"')
    if mode == "async":
        given = {"workers": workers, "rank": rank, "staleness": staleness}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f'{name} is {value!r} with mode="async"; give mode="sync"')
        return None
    count = _integer("workers", workers, 1, 1 << 16)
    place = _integer("rank", rank, 0, count - 1)
    return Worker(count, place, 0 if staleness is None else
                  _integer("staleness", staleness, 0, STALENESS_MAX))  # fmt: skip


def _integer(name: str, value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ConfigError(f'{name} is {value!r}; with mode="sync" give {least} to {most}')
    return value


def kept(call: Hot[Any]) -> Hot[Any]:
    """The call with arrays of its own: it is sent, and perhaps again, after its caller went on."""
    copies = [
        (table[0], *(None if array is None else array.copy() for array in table[1:]))
        for table in call.tables
    ]
    return call.of(copies)


class Numbers:
    """The numbers of one session's pushes; those of rounds are the same for all its workers.

    What became of a round that failed here is not known: it may have been applied. So the next push
    asks first, and goes to the round behind the last that every server has applied.
    """

    def __init__(self) -> None:
        self._last_push = 0
        self._last_round: int | None = None

    @property
    def is_round_known(self) -> bool:
        """False: `met` is wanted before the next round."""
        return self._last_round is not None

    def next_push(self) -> int:
        """Of a push that is made alone."""
        self._last_push += 1
        return self._last_push

    def next_round(self) -> int:
        """Of a push that is made together."""
        self._last_round = (self._last_round or 0) + 1
        return self._last_round

    def met(self, servers: Sequence[ServerInfo]) -> None:
        """What every server says of the last round."""
        self._last_round = min(server.last_round for server in servers)

    def lose(self) -> None:
        """A round has failed."""
        self._last_round = None
