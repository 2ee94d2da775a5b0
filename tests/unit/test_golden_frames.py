"""Goal: the bytes on the wire change only when somebody means it. Method: the frames of a whole
conversation, every verb asked and answered, beside those in tests/golden/frames.txt; read back from
there by either side, and written again from what was read.

After an intended change of the wire: HYBRIDPS_GOLDEN=write pytest tests/unit/test_golden_frames.py,
and look at the difference.
"""

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.wired import feed

import hybridps as hps
from hybridps import _core, verbs
from hybridps.client import messages
from hybridps.rpc import schemas
from hybridps.verbs.calls import Call, Cold, Push, ServerInfo
from hybridps.verbs.changes import Entry, Now, Page
from hybridps.verbs.inspect import Inspected
from hybridps.verbs.open_table import Opened
from hybridps.verbs.scatter import Operation
from hybridps.verbs.scrub import Damaged, Scrubbed
from hybridps.verbs.whole import WholePage

GOLDEN = Path(__file__).parents[1] / "golden" / "frames.txt"
TABLE = 1
KEYS = np.array([7, 2**64 - 1], np.uint64)
ROWS = np.array([[1, -2], [0.5, 4]], np.float32)
ADMITTING = hps.TableSpec("some", 2, hps.SGD(0.5), admission=hps.MinCount(3, 1000))
SPEC = hps.TableSpec("item", 2, hps.SGD(0.5), hps.Constant(0.25), seed=2**64 - 1, dram="2MiB")
RICH = hps.TableSpec("rich", 2, hps.Adam(0.5, clip_norm=2.0), hps.Normal(std=0.5), nvme="1GiB")
INFO = ServerInfo(
    "1.2.3", 1, 4, 1 << 26, 1 << 20, last_push=9, features=frozenset({"lookup", "size"})
)
OPENED = Opened(3, RICH.to_json(), ["learning_rate is 0.5, asked 1.0"])
# In the order asked, with what a server answers that need not ask a store.
INSPECTED = [
    Inspected(7, "nvme", 4096, True, 9, 3, 1_700_000_000, 0.5, None),
    Inspected(8, None, None, False, 0, 0, 0, 0.0, "gone"),
]
DAMAGED = (Damaged("item", 7, 4096, "lost"), Damaged(None, None, 64, "freed"))
SCRUBBED = Scrubbed(5, 4096, 8192, DAMAGED, 4096)
WHOLE = np.concatenate([ROWS, np.array([[3, 9], [0, 0]], np.uint32).view(np.float32)], axis=1)
TOLD = tuple(
    np.array(x, t) for x, t in (([3, 0], "u4"), ([1_700_000_000, 0], "u4"), ([2, 0], "u1"))
)
ASKED: list[tuple[Call[Any], Any]] = [
    (verbs.Assign([(TABLE, KEYS, ROWS)]), None),
    (verbs.Lookup([(TABLE, KEYS), (TABLE, KEYS[:0])], True), None),
    (verbs.Lookup([(TABLE, KEYS)], False), None),
    (verbs.LookupOrInsert([(TABLE, KEYS, np.array([1, 9], np.uint32)), (TABLE, KEYS, None)]), None),
    (verbs.ApplyGradients([(TABLE, KEYS, ROWS)], None), None),
    (verbs.ApplyGradients([(TABLE, KEYS, ROWS)], -5), None),
    (verbs.Prefetch([(TABLE, KEYS)]), None),
    (verbs.Remove([(TABLE, KEYS)]), None),
    (verbs.CreateTable(RICH.to_json()), OPENED),
    (verbs.OpenTable("rich"), OPENED),
    (verbs.ListTables(), ["item", "rich"]),
    (verbs.DropTable("rich"), None),
    (verbs.SetLearningRate(TABLE, 0.125), None),
    (verbs.Alter(TABLE, {"learning_rate": 0.5, "dram": None, "nvme": 1 << 40}), None),
    (verbs.Size(TABLE), 2**40),
    (verbs.KeysOf(TABLE, 17), (KEYS, 4096)),
    (verbs.TableStats(TABLE), {"keys": 2, "probes": 2**60}),
    (verbs.Stats(), {"tables": 1}),
    (verbs.Inspect(TABLE, KEYS), INSPECTED),
    (verbs.Scrub(0, 1 << 20), SCRUBBED),
    (verbs.Flush(), None),
    (verbs.Assign([(TABLE, KEYS, ROWS)]), None),
    (
        verbs.LookupPooled([(TABLE, KEYS, np.array([2, 0], np.uint32), ROWS[0])]),
        [[[0, -10], [0, 0]]],
    ),
    (verbs.LookupPooled([(TABLE, KEYS[:1], np.array([1], np.uint32), None)]), [[[1, -2]]]),
    (verbs.CheckpointJob("j", '{"do":"begin"}'), {"done": 1, "total": 2}),
    (verbs.RestoreJob("j", '{"do":"commit"}'), {"result": None}),
    (verbs.NowOf(), Now("0123456789abcdef" * 2, 2**63, {"item": Entry(TABLE, 2)})),
    (verbs.Changes(TABLE, 2**24, 2**36, 2**40, 1 << 20), Page(KEYS[:1], KEYS, ROWS, 2**36)),
    (verbs.Staleness(), 2**63),
    (verbs.Expire(TABLE, 17, 2**40), (2**33, 4096)),
    (verbs.Expire(TABLE, 0, None), (0, 1)),
    (verbs.CreateTable(replace(RICH, expiry=hps.After("30d")).to_json()), OPENED),
    (verbs.Alter(TABLE, {"expiry": hps.AfterSteps(2**40).options()}), None),
    (verbs.Alter(TABLE, {"expiry": hps.BelowNorm(0.5).options()}), None),
    (verbs.Changes(TABLE, 0, 2**36, None, 1 << 20), Page(KEYS[:0], KEYS[:0], ROWS[:0], 2**25)),
    (verbs.Scatter([(TABLE, KEYS, ROWS)], Operation.MAX), None),
    (verbs.StatisticsOf(TABLE, KEYS), TOLD),
    (verbs.ImportRows([(TABLE, KEYS, WHOLE)]), None),
    (verbs.ExportRows(TABLE, 0, 2**36, True, 1 << 20), WholePage(KEYS, WHOLE, 2**36)),
    (verbs.CreateTable(ADMITTING.to_json()), Opened(4, ADMITTING.to_json(), [])),
    (verbs.Alter(TABLE, {"admission": hps.Probability(0.25).options()}), None),
    (verbs.Alter(TABLE, {"admission": None}), None),
]


def plain(value: Any) -> Any:
    """What compares: arrays, and whatever holds some, as lists."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Page | WholePage):
        return [plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
    return [plain(part) for part in value] if isinstance(value, tuple | list) else value


def joined(buffers: Any) -> bytes:
    return b"".join(bytes(buffer) for buffer in buffers)


class Conversation:
    """Both sides of one connection, and what went over it, line by line."""

    def __init__(self, folder: Path) -> None:
        self.store = _core.Store(
            str(folder), dram=16 << 20, nvme=64 << 20, durability="none", threads=1
        )
        assert self.store.create_table(SPEC.to_json())[0] == TABLE
        self.store.attach(5, "me")
        self.server = _core.Connection(self.store, frame_limit=1 << 20, keys_limit=1000)
        self.client = _core.ClientConnection()
        self.frames: list[tuple[str, bytes]] = []

    def hold(self) -> None:
        """From the first byte to the last answer."""
        self.hello, opening = self.client.start(5, "me")
        self.say("opening", opening)
        (login,) = feed(self.server, opening)
        (hello,) = self.server.accept(login.question)
        self.say("opening.answered", bytes(self.server.outgoing()))
        self.server.session = 5
        self.returns("hello", hello, verbs.Hello, INFO)
        for number, (call, value) in enumerate(ASKED, 1):
            self.ask(f"{call.VERB}.{number}", call, number, value)
        question, buffers = messages.begin(self.client, verbs.Flush(), 0)
        feed(self.server, joined(buffers))
        reason = "StoreFullError: no room; free some"
        self.say("exception", bytes(self.server.fails(question, "failed", reason)))

    def ask(self, name: str, call: Call[Any], number: int, value: Any) -> None:
        as_push = number if isinstance(call, Push) else 0
        request = joined(messages.begin(self.client, call, as_push)[1])
        self.say(name, request)
        (event,) = feed(self.server, request)
        if isinstance(call, Cold):
            self.returns(name, event, type(call), value)
            return
        reply = event.run()
        self.server.answer(event.question)
        self.say(f"{name}.answered", bytes(reply))

    def returns(self, name: str, event: Any, kind: type[Cold[Any]], value: Any) -> None:
        results = schemas.new_results(kind.method())
        kind.answer(results, value)
        reply = self.server.returns(event.question, results.to_bytes())
        self.say(f"{name}.answered", bytes(reply))

    def say(self, name: str, frame: bytes) -> None:
        self.frames.append((name, frame))
        if name.endswith((".answered", "exception")):
            feed(self.client, frame)


@pytest.fixture
def conversation(tmp_path: Path) -> Iterator[Conversation]:
    conversation = Conversation(tmp_path / "data")
    yield conversation
    conversation.store.close()


def golden() -> dict[str, bytes]:
    frames = {}
    for line in GOLDEN.read_text(encoding="ascii").splitlines():
        name, _, words = line.partition(": ")
        frames[name] = bytes.fromhex(words)
    return frames


def test_every_verb_is_in_the_conversation() -> None:
    asked = {type(call) for call, _ in ASKED} | {verbs.Hello}
    assert asked == set(verbs.VERBS.values())


def test_the_bytes_are_those_of_before(conversation: Conversation) -> None:
    conversation.hold()
    if os.environ.get("HYBRIDPS_GOLDEN") == "write":
        lines = [f"{name}: {frame.hex(' ', 8)}\n" for name, frame in conversation.frames]
        GOLDEN.write_text("".join(lines), encoding="ascii")
    before = golden()
    assert [name for name, _ in conversation.frames] == list(before)
    for name, frame in conversation.frames:
        assert frame.hex(" ", 8) == before[name].hex(" ", 8), name


def test_a_server_reads_them_and_writes_them_again(conversation: Conversation) -> None:
    """What is in the file, not what this version writes, is what a server is given."""
    frames = golden()
    (login,) = feed(conversation.server, frames["opening"])
    (hello,) = conversation.server.accept(login.question)
    with schemas.read_params("hello", hello.params) as params:
        assert verbs.Hello.read(params) == verbs.Hello(5, "me")
    for number, (call, _) in enumerate(ASKED, 1):
        (event,) = feed(conversation.server, frames[f"{call.VERB}.{number}"])
        assert event.verb == call.method()
        if isinstance(call, Cold):
            with schemas.read_params(event.verb, event.params) as params:
                read = type(call).read(params)
            again = schemas.new_params(event.verb)
            read.fill(again)
            with schemas.read_params(event.verb, event.params) as params:
                assert again.as_reader().to_dict() == params.to_dict()


def test_a_client_reads_the_answers(conversation: Conversation) -> None:
    frames, client = golden(), conversation.client
    client.start(5, "me")
    (hello,) = feed(client, frames["opening.answered"] + frames["hello.answered"])
    assert messages.read_hello(hello) == INFO
    value = np.array([[1, -2], [0.5, 4]], np.float32)
    for number, (call, told) in enumerate(ASKED, 1):
        messages.begin(client, call, number if isinstance(call, Push) else 0)
        (answer,) = feed(client, frames[f"{call.VERB}.{number}.answered"])
        reply = messages.finish(call, answer, is_first=True)
        if isinstance(call, verbs.Lookup):
            np.testing.assert_array_equal(reply[0][0], value)
            assert (reply[0][1] is not None) == call.want_found
        elif isinstance(call, verbs.LookupOrInsert):
            np.testing.assert_array_equal(reply[0], value)
        elif isinstance(call, verbs.Remove):
            assert reply == len(KEYS)
        elif isinstance(told, Opened):
            assert (reply.id, reply.spec, reply.warnings) == (told.id, told.spec, told.warnings)
        else:
            wanted = False if isinstance(call, verbs.ApplyGradients) else told
            assert plain(reply) == plain(wanted)
    messages.begin(client, verbs.Flush(), 0)
    (answer,) = feed(client, frames["exception"])
    with pytest.raises(hps.StoreFullError, match="no room; free some"):
        messages.finish(verbs.Flush(), answer, is_first=True)
