"""The counting model: finds one lost, doubled or invented push, exactly.

A table of SGD with a learning rate of 1 that starts from zero; trainer i owns column i, and every
push adds exactly 1 there to each of its keys. So at any time, for each row and trainer:
acknowledged <= value <= acknowledged + unknown, and after all unknown pushes were sent again
value == pushes made. Integers are exact in float32 up to 2^24 pushes a row.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from typing import Any

import capnp
import numpy as np
from numpy.typing import NDArray

from support.stock import StockSession, stock_session

Address = tuple[str, int] | str
TABLE = "counts"
# More than one, so that a crash catches pushes in all states: sent, applied, answered.
WINDOW = 4
LOOKUP_KEYS = 10_000


@dataclass
class Trainer:
    """Pushes to its own column, over as many connections and servers as it takes."""

    column: int
    columns: int
    keys: int
    batch: int
    session: int
    pushes: int = 0
    acknowledged: NDArray[np.int64] = field(init=False)
    unknown: deque[tuple[int, NDArray[np.int64]]] = field(default_factory=deque)
    duplicates: int = 0

    def __post_init__(self) -> None:
        self.acknowledged = np.zeros(self.keys, np.int64)
        self._random = np.random.default_rng(self.session)

    async def train(self, address: Address, stop: asyncio.Event) -> None:
        """Resends what is unknown, then pushes on until told to stop or cut off."""
        with _cut_off_is_no_error():
            async with stock_session(address) as ps:
                table = await self._resume(ps)
                flights: deque[Awaitable[Any]] = deque()
                while not stop.is_set() or flights:
                    if not stop.is_set() and len(flights) < WINDOW:
                        self._next()
                        flights.append(self._push(ps, table, *self.unknown[-1]))
                    else:
                        assert not (await flights.popleft()).duplicate
                        self._acknowledge()

    async def settle(self, address: Address) -> None:
        """Sends again all that is unknown; nothing is afterwards."""
        async with stock_session(address) as ps:
            await self._resume(ps)
        assert not self.unknown

    async def _resume(self, ps: StockSession) -> int:
        """All unknown pushes are sent again, applied or not: the server must know which were."""
        last_push = await ps.hello(self.session)
        table = await ps.create_table(TABLE, self.columns)
        assert last_push <= self.pushes, "the server knows a push that was never made"
        acknowledged = self.unknown[0][0] - 1 if self.unknown else self.pushes
        assert last_push >= acknowledged, "the server forgot a push that it had acknowledged"
        while self.unknown:
            number, keys = self.unknown[0]
            duplicate = (await self._push(ps, table, number, keys)).duplicate
            # A push of the connection that was cut may still have been on its way at hello.
            assert duplicate or number > last_push, "a push was applied twice"
            self.duplicates += duplicate
            self._acknowledge()
        return table

    def _next(self) -> None:
        self.pushes += 1
        keys = self._random.choice(self.keys, self.batch, replace=False)
        self.unknown.append((self.pushes, keys))

    def _acknowledge(self) -> None:
        _, keys = self.unknown.popleft()
        self.acknowledged[keys] += 1

    def _push(
        self, ps: StockSession, table: int, number: int, keys: NDArray[np.int64]
    ) -> Awaitable[Any]:
        """Not a coroutine: one that is cancelled before it began would leave a gap in the order."""
        gradients = np.zeros((len(keys), self.columns), np.float32)
        gradients[:, self.column] = -1.0
        return ps.start_push(table, keys.tolist(), gradients, number)


@contextlib.contextmanager
def _cut_off_is_no_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        return
    except capnp.KjException as error:
        # Anything else is an answer of the server, and no answer may refuse these pushes.
        if error.type != "DISCONNECTED":
            raise


def trainers(count: int, columns: int, keys: int, batch: int, seed: int) -> list[Trainer]:
    """Trainers of columns 0 .. count - 1, with sessions of their own."""
    return [Trainer(i, columns, keys, batch, seed * 1000 + i + 1) for i in range(count)]


async def check(address: Address, crew: list[Trainer]) -> None:
    """Every row of the table against every trainer's books."""
    keys, columns = crew[0].keys, crew[0].columns
    values = np.zeros((keys, columns))
    async with stock_session(address) as ps:
        table = await ps.create_table(TABLE, columns)
        for start in range(0, keys, LOOKUP_KEYS):
            some = range(start, min(start + LOOKUP_KEYS, keys))
            values[start : some.stop] = await ps.lookup(table, some, columns)
    for trainer in crew:
        low = trainer.acknowledged
        high = low.copy()
        for _, pushed in trainer.unknown:
            high[pushed] += 1
        value = values[:, trainer.column]
        lost, invented = np.nonzero(value < low)[0], np.nonzero(value > high)[0]
        told = f"trainer {trainer.column}, session {trainer.session}, {trainer.pushes} pushes"
        assert not len(lost), f"{told}: acknowledged pushes lost on keys {lost[:10]}"
        assert not len(invented), f"{told}: pushes doubled or invented on keys {invented[:10]}"
        assert np.array_equal(value, np.round(value)), f"{told}: a value that is no count"
    assert not values[:, len(crew) :].any(), "a column that nobody pushes to has changed"
