"""Rounds: what workers push together, as a state machine. Calls and time in; what to run, and what
to answer, out.

Every worker brings one push to a round. When all are there, in a round before which none is open,
they are to be summed in the order of the ranks and applied once. The number of the round is that of
the push in the store, which applies it once, whatever is sent again and whatever is restarted. Of a
worker that is lost nothing stays: its push was applied, or it never was.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from hybridps.errors import BadInputError, ConfigError

T = TypeVar("T")

# Rounds that may be open at a time: as far as a worker may be ahead of the slowest.
OPEN_MAX = 64
# A round that waits so long for a worker is told in the log, once.
LATE_S = 10.0


@dataclass(slots=True)
class _Member:
    """A worker that is there: its connection, its session, and the name it speaks for."""

    key: object
    session: int
    client_id: str
    # By table, the last step of this session that was applied.
    steps: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Brought(Generic[T]):
    """One worker's push."""

    call: T
    tables: Collection[int]


@dataclass(slots=True)
class _Round(Generic[T]):
    """A round that waits for workers: its step, since when, and what each has brought."""

    number: int
    step: int | None
    since_s: float
    brought: dict[int, _Brought[T]] = field(default_factory=dict)
    is_told: bool = False


class Rounds(Generic[T]):
    """The rounds of one server. T: what is brought."""

    def __init__(self) -> None:
        # The last round that was applied.
        self.last = 0
        self._workers = 0
        self._members: dict[int, _Member] = {}
        self._open: dict[int, _Round[T]] = {}
        self._running: _Round[T] | None = None
        # By table, the highest step of all that were applied.
        self._steps: dict[int, int] = {}

    def waiting(self) -> list[T]:
        """What was brought and waits for others."""
        return [b.call for round_ in self._open.values() for b in round_.brought.values()]

    # Who is there.

    def enter(
        self, key: object, workers: int, rank: int, session: int, client_id: str, last: int
    ) -> list[T]:
        """A worker is there, by the connection `key`. `last`: the last round that the store knows.

        Returns what it had brought over another connection, which nobody waits for any more.
        Raises: ConfigError when it does not fit those that are there.
        """
        if not 0 <= rank < workers:
            raise ConfigError(f"rank is {rank} of {workers} workers; give 0 to {workers - 1}")
        if self._members and workers != self._workers:
            raise ConfigError(
                f"rank {rank} of {workers} workers meets others that are {self._workers}; start all"
                " with the same workers="
            )
        known = self._members.get(rank)
        if known is not None and known.session != session:
            if not client_id or known.client_id != client_id:
                raise ConfigError(
                    f"rank {rank} of {workers} workers is there already; give each a rank of its"
                    " own, and a client_id, by which it can come back at any time"
                )
            known.steps = {}
        self._workers = workers
        self.last = max(self.last, last)
        if known is None:
            self._members[rank] = _Member(key, session, client_id)
            return []
        gone = [] if known.key == key else self._withdrawn(rank)
        known.key, known.session, known.client_id = key, session, client_id
        return gone

    def leave(self, key: object) -> list[T]:
        """A connection is lost; what came over it, and nobody waits for any more."""
        gone: list[T] = []
        for rank in [rank for rank, member in self._members.items() if member.key == key]:
            del self._members[rank]
            gone += self._withdrawn(rank)
        return gone

    # What they bring.

    def bring(
        self,
        rank: int,
        number: int,
        step: int | None,
        tables: Collection[int],
        call: T,
        now_s: float,
    ) -> bool:
        """A push to a round. False: it was applied before, and is to be acknowledged.

        Raises: BadInputError when it does not fit what was brought before.
        """
        if number <= self.last:
            return False
        if step is not None and self._is_replay(rank, step, tables):
            return False
        if self._running is not None and number == self._running.number:
            raise BadInputError(f"round {number} is being applied already; push to the next one")
        round_ = self._open.get(number)
        if round_ is None:
            if len(self._open) >= OPEN_MAX:
                raise BadInputError(
                    f"round {number} would be the {OPEN_MAX + 1}th that waits for a worker; the"
                    f" last one that was applied is {self.last}; connect again"
                )
            round_ = self._open[number] = _Round(number, step, now_s)
        elif rank in round_.brought:
            raise BadInputError(f"rank {rank} has pushed to round {number} already")
        elif round_.step != step:
            other = min(round_.brought)
            raise BadInputError(
                f"rank {rank} pushes step {step}, and rank {other} step {round_.step}, to the same"
                " round; workers push the same steps in the same order"
            )
        round_.brought[rank] = _Brought(call, tables)
        return True

    def withdraw(self, call: T) -> None:
        """Nobody waits for the answer to this push any more."""
        for round_ in list(self._open.values()):
            for rank, brought in list(round_.brought.items()):
                if brought.call is call:
                    self._take_back(round_, rank)

    def clear(self) -> list[T]:
        """Nothing is to wait any longer; what did."""
        gone = self.waiting()
        self._open.clear()
        return gone

    # What is to be done.

    def due(self) -> tuple[int, Sequence[T]] | None:
        """The round that is to be applied now, if any, and what the workers brought in the order of
        their ranks. `ended` is to follow.
        """
        if self._running is not None or not self._open:
            return None
        round_ = self._open[min(self._open)]
        if len(round_.brought) < self._workers:
            return None
        self._running = self._open.pop(round_.number)
        return round_.number, [round_.brought[rank].call for rank in sorted(round_.brought)]

    def ended(self, *, is_applied: bool) -> None:
        """The round that was due is applied; or nothing has changed, and it may be pushed again."""
        round_, self._running = self._running, None
        if round_ is None or not is_applied:
            return
        self.last = max(self.last, round_.number)
        if round_.step is None:
            return
        for rank, brought in round_.brought.items():
            member = self._members.get(rank)
            for table in brought.tables:
                self._steps[table] = max(round_.step, self._steps.get(table, round_.step))
                if member is not None:
                    member.steps[table] = round_.step

    def late(self, now_s: float) -> Mapping[int, list[int]]:
        """Rounds that have waited for long, and the ranks that each waits for; each once."""
        late: dict[int, list[int]] = {}
        for round_ in self._open.values():
            if not round_.is_told and now_s - round_.since_s >= LATE_S:
                round_.is_told = True
                late[round_.number] = sorted(set(range(self._workers)) - set(round_.brought))
        return late

    # Inside.

    def _is_replay(self, rank: int, step: int, tables: Collection[int]) -> bool:
        """True for a worker that came back and makes steps again that were applied before."""
        own = self._members[rank].steps if rank in self._members else {}
        for table in tables:
            if step <= own.get(table, step - 1):
                raise BadInputError(
                    f"step is {step}, but rank {rank} has pushed step {own[table]} to the same"
                    " table; give steps that grow from push to push"
                )
        return bool(tables) and all(step <= self._steps.get(t, step - 1) for t in tables)

    def _withdrawn(self, rank: int) -> list[T]:
        open_ = [round_ for round_ in self._open.values() if rank in round_.brought]
        return [self._take_back(round_, rank) for round_ in open_]

    def _take_back(self, round_: _Round[T], rank: int) -> T:
        brought = round_.brought.pop(rank)
        if not round_.brought:
            del self._open[round_.number]
        return brought.call
