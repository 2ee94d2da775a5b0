"""A line without sockets: its bytes go to a server's side in this process, as far as a test says,
and its clock is turned by hand."""

from pathlib import Path
from typing import Any

import numpy as np

from hybridps import _core, verbs
from hybridps.client.line import Line
from hybridps.client.pending import Pending
from hybridps.client.retry import Deadline
from hybridps.client.session import Identity
from hybridps.client.urls import Address
from hybridps.rpc import schemas
from hybridps.verbs.calls import Call, Push
from support.wired import feed

DIM = 2
SPEC = f"""{{"name": "item", "dim": {DIM}, "optimizer": {{"kind": "sgd"}}, "learning_rate": 1.0,
"initializer": {{"kind": "zeros"}}, "seed": 7, "dtype": "float32", "dram": null, "nvme": null}}"""


class Store:
    """A store, and what a server tells of its limits."""

    def __init__(self, folder: Path, frame_limit: int = 1 << 20, keys_limit: int = 1 << 16) -> None:
        self.limits = {"frame_limit": frame_limit, "keys_limit": keys_limit}
        self.engine = _core.Store(
            str(folder), dram=16 << 20, nvme=64 << 20, durability="none", threads=1
        )
        self.table = self.engine.create_table(SPEC)[0]
        self.refusal = ""
        # What a server of version 0.0 lists; nothing: it is older than the list.
        self.features: list[str] = []


class Far:
    """The server's side of one connection; answers what arrives, at once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.wire = _core.Connection(store.engine, **store.limits)
        self.replies = b""
        self.asked: list[str] = []

    def arrive(self, data: bytes) -> None:
        events = feed(self.wire, data)
        self.replies += bytes(self.wire.outgoing())
        while events:
            event = events.pop(0)
            if isinstance(event, _core.Login):
                events = self.wire.accept(event.question)
                self.replies += bytes(self.wire.outgoing())
            else:
                self.asked.append(event.verb)
                self.replies += bytes(self.answer(event))
        assert self.wire.closing is None, self.wire.closing

    def answer(self, event: Any) -> Any:
        if isinstance(event, _core.HotCall):
            reply = event.run()
            return self.wire.answer(event.question) or reply
        assert event.verb == "hello"
        if self.store.refusal:
            return self.wire.fails(event.question, "failed", self.store.refusal)
        results = schemas.new_results("hello")
        with schemas.read_params("hello", event.params) as params:
            self.wire.session = params.session
            self.store.engine.attach(params.session, params.clientId)
        results.server.version = "0.0"
        results.server.shards = 1
        results.server.features = self.store.features
        results.server.frameLimit = self.store.limits["frame_limit"]
        results.server.keysLimit = self.store.limits["keys_limit"]
        return self.wire.returns(event.question, results.to_bytes())


class Near:
    """A line, its clock, and its connection if it has one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.now_s = 0.0
        self.line = Line(Address("far", 1), 0, 1, Identity(None))
        self.far: Far | None = None
        self.fars: list[Far] = []
        self._number = 0

    # Calls.

    def submit(self, call: Call[Any] | None, timeout: float = 10.0) -> Pending:
        if isinstance(call, Push):
            self._number += 1
        pending = Pending(call, self._number, Deadline(timeout, self.now_s))
        self.line.submit(pending)
        return pending

    def push(self, keys: Any = (1,), value: float = 1.0, timeout: float = 10.0) -> Pending:
        patterns = np.asarray(keys, np.uint64)
        gradients = np.full((len(patterns), DIM), value, np.float32)
        return self.submit(
            verbs.ApplyGradients([(self.store.table, patterns, gradients)], None), timeout
        )

    def lookup(self, keys: Any = (1,), timeout: float = 10.0) -> Pending:
        patterns = np.asarray(keys, np.uint64)
        return self.submit(verbs.Lookup([(self.store.table, patterns)], False), timeout)

    def value(self, key: int = 1) -> float:
        """What the store has."""
        ((rows, _),) = self.store.engine.lookup(
            [(self.store.table, np.array([key], np.uint64))], False
        )
        return float(rows[0, 0])

    # The driver.

    def open(self) -> None:
        """Opens a connection if the line wants one."""
        if self.line.wire is None:
            self.far = None
        if self.line.is_connection_wanted(self.now_s):
            self.far = Far(self.store)
            self.fars.append(self.far)
            self.line.opened(self.now_s)

    def send(self, count: int = 1 << 40) -> None:
        """So many bytes go over, or as many as there are."""
        while count and self.far is not None and self.line.has_unsent:
            data = self.line.take(min(count, 1 << 16), self.now_s)
            count -= len(data)
            self.far.arrive(data)

    def receive(self, count: int = 1 << 40) -> None:
        """So many bytes come back."""
        far = self.far
        while count and far is not None and far.replies and self.line.wire is not None:
            with memoryview(self.line.wire.get_buffer(-1)) as room:
                piece = far.replies[: min(count, len(room))]
                room[: len(piece)] = piece
            far.replies = far.replies[len(piece) :]
            count -= len(piece)
            self.line.received(len(piece), self.now_s)

    def settle(self) -> None:
        """All that can happen without time happens."""
        for _ in range(1000):
            self.open()
            if not (self.line.has_unsent or (self.far is not None and self.far.replies)):
                return
            self.send()
            self.receive()

    def cut(self) -> None:
        """The connection is lost."""
        self.far = None
        self.line.lost("cut", self.now_s)

    def wait(self, seconds: float) -> None:
        """Time goes by, and nothing else."""
        self.now_s += seconds
        self.line.check(self.now_s)
