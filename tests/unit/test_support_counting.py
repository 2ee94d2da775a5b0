"""Goal: the counting model finds what it is made to find. Method: a server in a few lines, right
or with one planted fault, behind the connection that the model opens."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import capnp
import numpy as np
import pytest
from numpy.typing import NDArray
from support import counting

KEYS, COLUMNS, PUSHES_A_CONNECTION = 50, 3, 10


def cut_off(when: str) -> Exception:
    return capnp.KjException(f"cut off {when}", type="DISCONNECTED")


@dataclass
class Reply:
    duplicate: bool


class Pretender:
    """A server that cuts every connection after some pushes; `fault` names what it does wrong."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.rows = np.zeros((KEYS, COLUMNS), np.float32)
        self.last = dict[int, int]()
        self.session = self.left = 0

    async def hello(self, session: int) -> int:
        self.session = session
        return self.last.setdefault(session, 0)

    async def create_table(self, _name: str, _dim: int) -> int:
        return 1

    async def lookup(self, _table: int, keys: Sequence[int], _dim: int) -> NDArray[np.float32]:
        return self.rows[list(keys)]

    def start_push(
        self, _table: int, keys: Sequence[int], gradients: NDArray[np.float32], number: int
    ) -> asyncio.Future[Reply]:
        future = asyncio.get_running_loop().create_future()
        try:
            future.set_result(Reply(self._push(keys, gradients, number)))
        except capnp.KjException as error:
            future.set_exception(error)
            future.exception()  # Nobody need ask for it.
        return future

    def _push(self, keys: Sequence[int], gradients: NDArray[np.float32], number: int) -> bool:
        self.left -= 1
        if self.left < 0:
            raise cut_off("before the push")
        duplicate = number <= self.last[self.session]
        if not duplicate or self.fault == "applies again":
            column = 2 if self.fault == "wrong column" and number == 5 else slice(None)
            self.rows[keys, column] -= gradients[:, 0 if column == 2 else slice(None)]
            self.last[self.session] = max(number, self.last[self.session])
        if self.left == 0:
            raise cut_off("after the push, before its answer")
        return duplicate and self.fault != "says it was new"

    def crash(self) -> None:
        if self.fault == "loses rows":
            self.rows[:25] = 0
        if self.fault == "forgets sessions":
            self.last.clear()

    @asynccontextmanager
    async def connect(self, _address: object) -> AsyncIterator["Pretender"]:
        self.left = PUSHES_A_CONNECTION
        yield self


async def campaign(monkeypatch: pytest.MonkeyPatch, fault: str) -> counting.Trainer:
    server = Pretender(fault)
    monkeypatch.setattr(counting, "stock_session", server.connect)
    (trainer,) = counting.trainers(count=1, columns=COLUMNS, keys=KEYS, batch=10, seed=1)
    for _ in range(3):
        await trainer.train("", asyncio.Event())
        await counting.check("", [trainer])
        server.crash()
        await counting.check("", [trainer])
    await trainer.settle("")
    await counting.check("", [trainer])
    return trainer


async def test_a_right_server_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = await campaign(monkeypatch, "none")
    assert trainer.pushes > 20
    assert trainer.duplicates > 0
    assert trainer.acknowledged.sum() == 10 * trainer.pushes


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("loses rows", "acknowledged pushes lost"),
        ("forgets sessions", "forgot a push"),
        ("applies again", "doubled or invented"),
        ("says it was new", "applied twice"),
        ("wrong column", "lost|nobody pushes to"),
    ],
)
async def test_every_planted_fault_is_found(
    monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    with pytest.raises(AssertionError, match=told):
        await campaign(monkeypatch, fault)
