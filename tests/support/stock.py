"""A client made of nothing but pycapnp and the schema: what any Cap'n Proto user could write."""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import capnp
import numpy as np
from numpy.typing import NDArray

capnp.remove_import_hook()
SCHEMA = capnp.load(str(Path(__file__).parents[2] / "schemas" / "hybridps.capnp"))


class StockSession:
    """One connection's Session, with arrays in and out."""

    def __init__(self, remote: Any) -> None:
        self.remote = remote
        self.pushes = 0

    async def hello(self, session: int, client_id: str = "") -> int:
        """The session's last push that was applied."""
        reply = await self.remote.hello(session=session, clientId=client_id)
        self.pushes = int(reply.server.lastPush)
        return self.pushes

    async def create_table(self, name: str, dim: int, **changes: Any) -> int:
        """The id of a table that counts: SGD with a learning rate of 1, from zero."""
        spec = {
            "name": name,
            "dim": dim,
            "optimizer": {"learningRate": 1.0, "sgd": None},
            "initializer": {"zeros": None},
            **changes,
        }
        return int((await self.remote.createTable(spec=spec)).table.id)

    def start_push(
        self, table: int, keys: Sequence[int], gradients: NDArray[np.float32], number: int
    ) -> Awaitable[Any]:
        """Sends a push before it returns, so that pushes leave in order; await the reply."""
        batch = {"table": table, "keys": pack(keys), "gradients": gradients.tobytes()}
        reply: Awaitable[Any] = self.remote.applyGradients(push={"number": number}, tables=[batch])
        return reply

    async def apply_gradients(
        self, table: int, keys: Sequence[int], gradients: NDArray[np.float32]
    ) -> bool:
        """Pushes with the next number; whether it was a duplicate."""
        self.pushes += 1
        return bool((await self.start_push(table, keys, gradients, self.pushes)).duplicate)

    async def lookup(self, table: int, keys: Sequence[int], dim: int) -> NDArray[np.float32]:
        """float32[n, dim]; absent keys are zeros."""
        batch = {"table": table, "keys": pack(keys)}
        reply = await self.remote.lookup(tables=[batch], wantFound=False)
        return np.frombuffer(reply.tables[0].rows, np.float32).reshape(len(keys), dim)

    async def counters(self, table: int | None = None) -> dict[str, int]:
        """stats() of a table, or of the store."""
        if table is None:
            reply = await self.remote.stats()
        else:
            reply = await self.remote.tableStats(table=table)
        return {c.name: c.value for c in reply.counters}


def pack(keys: Sequence[int]) -> bytes:
    """Keys as the schema carries them."""
    return struct.pack(f"<{len(keys)}Q", *keys)


@asynccontextmanager
async def stock_session(
    address: tuple[str, int] | str, token: str = "", **tls: Any
) -> AsyncIterator[StockSession]:
    """Connects and logs in; must run inside `capnp.kj_loop()`."""
    if isinstance(address, str):
        stream = await capnp.AsyncIoStream.create_unix_connection(address)
    else:
        stream = await capnp.AsyncIoStream.create_connection(*address, **tls)
    client = capnp.TwoPartyClient(stream)
    try:
        gate = client.bootstrap().cast_as(SCHEMA.Gate)
        yield StockSession((await gate.login(token=token)).session)
    finally:
        client.close()
        stream.close()
        if tls:
            # Both sides say that they end; a transport that is dropped before warns.
            await asyncio.sleep(0.2)
