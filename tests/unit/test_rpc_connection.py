"""Goal: a connection does what was asked, in order, and gives back all that was held for it, in
whatever state it is lost; time ends what stalls and nothing else. Method: the state machine without
sockets, with a clock that the test turns: bytes by hand, a port that only notes what it is told."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.wired import DIM, SPEC, Counts, feed, limits

from hybridps import _core
from hybridps.errors import OverloadedError
from hybridps.rpc import schemas
from hybridps.rpc.booking import Booking
from hybridps.rpc.budget import Budget, Grant
from hybridps.rpc.connection import Connection
from hybridps.rpc.host import Host

KEYS = 4096
LARGE = np.arange(KEYS, dtype=np.uint64)
BACKLOG = KEYS * DIM * 4 + 100
ROWS = np.ones((KEYS, DIM), np.float32)


class Peer:
    """A connection, the client that speaks to it, and the port, which runs nothing by itself."""

    def __init__(self, host: Host, table: int, now_s: float = 0.0) -> None:
        self.told: list[str] = []
        self.written = b""
        self.running: list[Booking] = []
        self.client = _core.ClientConnection()
        self.table = table
        self.connection = Connection(host, self, now_s)
        self.unsent = b""
        self.is_reading = True
        self.takes_all = True

    # The port.

    def start(self, booking: Booking) -> None:
        self.running.append(booking)

    def write(self, chunk: memoryview) -> None:
        self.written += chunk
        if not self.takes_all:
            self.connection.full()

    def read(self, *, on: bool) -> None:
        assert on is not self.is_reading
        self.is_reading = on

    def close(self) -> None:
        self.told.append("close")

    def abort(self) -> None:
        self.told.append("abort")

    # The peer.

    def say(self, buffers: Any) -> None:
        """Bytes of a call, which wait in `unsent` for `deliver`."""
        self.unsent += b"".join(bytes(buffer) for buffer in buffers)

    def greet(self) -> None:
        self.say([self.client.start(5, "")[1]])
        self.deliver()
        self.run()

    def lookup(self) -> None:
        self.say(self.client.lookup([(self.table, LARGE)], False)[1])

    def push(self, number: int) -> None:
        self.say(self.client.apply_gradients(number, None, [(self.table, LARGE, ROWS)])[1])

    def deliver(self, count: int = 1 << 62, now_s: float = 0.0) -> int:
        """Hands bytes to the connection while it reads; how many."""
        delivered = 0
        while self.unsent and self.is_reading and delivered < count:
            with memoryview(self.connection.wire.get_buffer(-1)) as room:
                piece = self.unsent[: min(len(room), count - delivered)]
                room[: len(piece)] = piece
            self.unsent = self.unsent[len(piece) :]
            delivered += len(piece)
            self.connection.received(len(piece), now_s)
        return delivered

    def run(self, n: int = 0) -> str:
        """Runs one of the calls that were started, to its answer."""
        booking = self.running.pop(n)
        call, wire = booking.call, self.connection.wire
        if isinstance(call, _core.ColdCall):
            if call.verb == "hello":
                self.connection.session = 5
            results = schemas.new_results(call.verb)
            self.connection.answered(booking, wire.returns(call.question, results.to_bytes()))
        else:
            self.connection.answered(booking, wire.answer(call.question) or call.run())
        return call.verb


class Shared(Host):
    """A host of peers; no workers, nothing runs."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        store = _core.Store(str(folder), dram=16 << 20, nvme=64 << 20, durability="none", threads=1)
        self.counts = Counts()
        nobody: Any = None
        super().__init__(store, nobody, nobody, self.counts, limits(**changes))
        self.table = store.create_table(SPEC)[0]

    def peer(self, now_s: float = 0.0) -> Peer:
        return Peer(self, self.table, now_s)

    @property
    def held(self) -> tuple[int, int]:
        """Bytes of frames, with those of pushes in parts, and of replies."""
        return self.frames.used + self.pushes.used, self.replies.used


def fill(budget: Budget, count: int) -> Grant:
    """So much is somebody else's."""
    grant = Grant(budget, count)
    grant.take(lambda: None)
    assert grant.is_held
    return grant


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Shared]:
    shared = Shared(tmp_path / "data", inflight_bytes=1 << 20)
    yield shared
    shared.store.close()


def test_calls_are_answered_in_order_and_nothing_stays_held(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    peer.lookup()
    peer.push(1)
    peer.lookup()
    peer.deliver()
    assert [b.call.verb for b in peer.running] == ["lookup"], "a push waits for reads before it"
    assert peer.run() == "lookup"
    assert [b.call.verb for b in peer.running] == ["applyGradients"]
    assert host.held[0] > 0
    assert [peer.run(), peer.run()] == ["applyGradients", "lookup"]
    assert (peer.running, host.held, peer.connection.is_idle) == ([], (0, 0), True)


def test_a_push_that_waits_for_others_stands_before_nobody(host: Shared) -> None:
    """Its bytes leave the budget that all calls need, and come back however it ends."""
    peer = host.peer()
    peer.greet()
    peer.push(1)
    peer.lookup()
    peer.deliver()
    (push,) = peer.running
    peer.connection.keep(push)
    assert [b.call.verb for b in peer.running] == ["applyGradients", "lookup"]
    assert host.pushes.used == push.call.frame_bytes
    assert peer.run(1) == "lookup"
    assert (host.frames.used, peer.connection.is_idle) == (0, False)
    peer.connection.forsake(push)
    assert (host.held, peer.connection.is_idle) == ((0, 0), True)


def test_there_is_a_bound_on_what_waits_for_others(tmp_path: Path) -> None:
    host = Shared(tmp_path / "data", push_bytes=1000)
    peer = host.peer()
    peer.greet()
    peer.push(1)
    peer.deliver()
    with pytest.raises(OverloadedError, match=r"hold 0 bytes, and .* beyond the 1000"):
        peer.connection.keep(peer.running[0])
    peer.run()
    assert host.held == (0, 0)
    host.store.close()


def small_lookup(peer: Peer, *keys: int) -> None:
    patterns = np.array(keys, np.uint64)
    peer.say(peer.client.lookup([(peer.table, patterns)], False)[1])


def test_small_lookups_are_answered_where_they_are_decoded(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    host.counts.observed.clear()
    for n in range(5):
        small_lookup(peer, n)
    before = len(peer.written)
    peer.deliver()
    assert (peer.running, host.counts.observed) == ([], [("lookup", "ok")] * 5)
    answers = feed(peer.client, peer.written)
    assert [len(answer.rows) for answer in answers if answer.kind == "rows"] == [1] * 5
    assert len(peer.written) - before > 5 * 4 * DIM
    # What is wrong is told at once, too.
    before = len(peer.written)
    peer.say(peer.client.lookup([(99, LARGE[:1])], False)[1])
    peer.deliver()
    assert host.counts.observed[-1] == ("lookup", "TableNotFoundError")
    assert feed(peer.client, peer.written[before:])[-1].exception[1] == "TableNotFoundError"


def test_no_lookup_is_answered_before_what_was_asked_before_it(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    small_lookup(peer, 1)
    peer.push(1)
    small_lookup(peer, 1)
    peer.deliver()
    small_lookup(peer, 1)
    peer.deliver()
    assert [booking.call.verb for booking in peer.running] == ["applyGradients"]
    while peer.running:
        peer.run()
    rows = [np.frombuffer(answer.rows[0][0], np.float32)[0]
            for answer in feed(peer.client, peer.written) if answer.kind == "rows"]  # fmt: skip
    assert rows == [0.0, -0.5, -0.5]


def test_lookups_wait_behind_what_the_peer_does_not_read(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    peer.lookup()
    peer.deliver()
    peer.takes_all = False
    peer.run()
    small_lookup(peer, 1)
    peer.deliver()
    assert [booking.call.verb for booking in peer.running] == ["lookup"]


def lose(peer: Peer) -> None:
    """The socket goes; then those who run calls are done."""
    peer.connection.lost()
    peer.is_reading = False
    while peer.running:
        peer.run()


def reach_arriving(_host: Shared, peer: Peer) -> list[Grant]:
    peer.push(1)
    peer.deliver(50_000)
    assert peer.connection.wire.is_inside_frame
    return []


def reach_announced(host: Shared, peer: Peer) -> list[Grant]:
    filler = fill(host.frames, 1 << 19)
    peer.push(1)
    peer.deliver()
    assert (bool(peer.unsent), peer.is_reading, host.frames.is_short) == (True, False, True)
    return [filler]


def reach_in_line(_host: Shared, peer: Peer) -> list[Grant]:
    peer.push(1)
    peer.lookup()
    peer.lookup()
    peer.deliver()
    assert [booking.call.verb for booking in peer.running] == ["applyGradients"]
    return []


def reach_running(host: Shared, peer: Peer) -> list[Grant]:
    reach_in_line(host, peer)
    peer.run()
    return []


def reach_for_a_reply(host: Shared, peer: Peer) -> list[Grant]:
    filler = fill(host.replies, 1 << 19)
    reach_in_line(host, peer)
    peer.run()
    assert (peer.running, host.replies.is_short) == ([], True)
    return [filler]


def reach_handed(host: Shared, peer: Peer) -> list[Grant]:
    reach_running(host, peer)
    peer.takes_all = False
    peer.run()
    assert not peer.connection.outbox
    return []


def reach_unsent(host: Shared, peer: Peer) -> list[Grant]:
    reach_handed(host, peer)
    peer.run()
    assert peer.connection.outbox
    return []


def reach_half_closed(host: Shared, peer: Peer) -> list[Grant]:
    reach_running(host, peer)
    assert peer.connection.eof()
    return []


STATES = [reach_arriving, reach_announced, reach_in_line, reach_running, reach_for_a_reply,
          reach_handed, reach_unsent, reach_half_closed]  # fmt: skip


@pytest.mark.parametrize("reach", STATES, ids=lambda reach: reach.__name__)
def test_a_connection_lost_in_any_state_holds_nothing(host: Shared, reach: Any) -> None:
    other, peer = host.peer(), host.peer()
    for each in (other, peer):
        each.greet()
    fillers = reach(host, peer)
    assert sum(host.held) > 0
    lose(peer)
    for filler in fillers:
        filler.release()
    assert (host.held, host.frames.is_short, host.replies.is_short) == ((0, 0), False, False)
    # And the next large call gets through.
    other.lookup()
    other.deliver()
    other.run()
    assert (other.running, host.held) == ([], (0, 0))


def test_a_call_that_its_runner_forgot_is_given_back_with_the_connection(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    peer.lookup()
    peer.push(1)
    peer.deliver()
    peer.connection.lost()
    assert sum(host.held) > 0
    del peer
    gc.collect()
    assert host.held == (0, 0)


def step(rnd: random.Random, host: Shared, peers: list[Peer], now_s: float) -> None:
    peer = rnd.choice(peers)
    match rnd.randrange(9):
        case 0 if len(peer.unsent) < 1 << 20:
            peer.lookup()
        case 1 if len(peer.unsent) < 1 << 20:
            peer.push(rnd.randint(1, 1000))
        case 2 | 3:
            peer.deliver(rnd.choice([1, 100, 10_000, 200_000]), now_s)
        case 4 | 5 if peer.running:
            peer.run(rnd.randrange(len(peer.running)))
        case 6:
            peer.takes_all = not peer.takes_all
            if peer.takes_all:
                peer.connection.room(now_s)
        case 7:
            peer.connection.check(now_s, 0)
        case 8 if rnd.random() < 0.2:
            peers.remove(peer)
            lose(peer)
            peers.append(host.peer(now_s))
            peers[-1].greet()


@pytest.mark.parametrize("seed", range(30))
def test_any_steps_end_with_nothing_held(host: Shared, seed: int) -> None:
    rnd, peers = random.Random(seed), [host.peer() for _ in range(3)]
    for peer in peers:
        peer.greet()
    for n in range(400):
        step(rnd, host, peers, n / 1000)
    for peer in peers:
        lose(peer)
    assert (host.held, host.frames.is_short, host.replies.is_short) == ((0, 0), False, False)


def announce(peer: Peer, number: int, count: int) -> None:
    """Tells of a push in parts of so many bytes."""
    nothing = (peer.table, LARGE[:0], ROWS[:0])
    peer.say(peer.client.apply_gradients(number, None, [nothing], count)[1])


def send_part(peer: Peer, number: int, count: int, rows: int) -> None:
    part = (peer.table, LARGE[:rows], ROWS[:rows])
    peer.say(peer.client.apply_gradients(number, None, [part], count)[1])


ROW_BYTES = 8 + 4 * DIM


def test_a_push_in_parts_holds_room_for_all_until_it_is_whole(host: Shared) -> None:
    peer, other = host.peer(), host.peer()
    for each in (peer, other):
        each.greet()
    total = 2000 * ROW_BYTES
    announce(peer, 1, total)
    peer.deliver()
    peer.run()
    assert host.pushes.used == total
    for _ in range(2):
        assert host.held[0] == total
        send_part(peer, 1, total, 1000)
        peer.deliver()
        peer.run()
    assert host.held == (0, 0)
    # Beyond the limit: refused. While another has the room: waits, and holds next to nothing.
    announce(other, 1, host.limits.push_bytes + 1)
    other.deliver()
    assert (other.running, b"BadInputError" in other.written) == ([], True)
    announce(peer, 2, total)
    peer.deliver()
    peer.run()
    announce(other, 2, host.limits.push_bytes)
    other.deliver()
    assert (other.running, host.pushes.is_short) == ([], True)
    assert host.frames.used < 1000
    # What is not gone on with is cut, sooner when somebody waits.
    peer.connection.check(100.0, 0)
    peer.connection.check(101.5, 0)
    assert peer.told == ["abort"]
    lose(peer)
    assert [booking.call.verb for booking in other.running] == ["applyGradients"]
    lose(other)
    assert (host.held, host.pushes.is_short) == ((0, 0), False)


def test_a_push_that_is_not_gone_on_with_gives_way_to_the_next(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    for number in range(1, 4):
        announce(peer, number, 1000 * ROW_BYTES)
        send_part(peer, number, 1000 * ROW_BYTES, 10)
        peer.deliver()
        while peer.running:
            peer.run()
        assert host.pushes.used == 1000 * ROW_BYTES
    lose(peer)
    assert host.held == (0, 0)


def test_time_ends_what_stalls(host: Shared) -> None:
    silent, halfway, idle, slow = (host.peer() for _ in range(4))
    for peer in (halfway, idle, slow):
        peer.greet()
    halfway.push(1)
    halfway.deliver(1000, now_s=10.0)
    slow.push(1)
    at = 0.0
    while slow.deliver(20, now_s=at):
        at += 1.0
        slow.connection.check(at, 0)
        if slow.told:
            break
    assert at == pytest.approx(61 + 8 * len(LARGE) * (1 + DIM / 2) / (64 << 10), abs=3)
    for at, told in ((39.0, []), (41.0, ["abort"])):
        halfway.connection.check(at, 0)
        assert halfway.told == told
    for at, told in ((59.0, []), (61.0, ["abort"])):
        silent.connection.check(at, 0)
        assert silent.told == told
    idle.connection.check(3599.0, 0)
    assert idle.told == []
    idle.connection.check(3601.0, 0)
    assert idle.told == ["abort"]
    assert host.counts.rejected == ["frame", "frame", "login", "idle"]


def test_who_reads_nothing_is_cut_sooner_when_others_wait(host: Shared) -> None:
    deaf, waits = host.peer(), host.peer()
    for peer in (deaf, waits):
        peer.greet()
    filling = fill(host.replies, 300 << 10)
    deaf.lookup()
    deaf.deliver()
    deaf.run()
    deaf.connection.check(0.0, BACKLOG)
    deaf.connection.check(20.0, BACKLOG)
    assert deaf.told == []
    taken = fill(host.replies, 150 << 10)
    waits.lookup()
    waits.deliver()
    assert host.replies.is_short
    deaf.connection.check(22.0, BACKLOG)
    assert deaf.told == ["abort"]
    del filling, taken


def test_a_frame_that_waits_for_its_grant_is_not_blamed_for_the_time(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    filler = fill(host.frames, 1 << 19)
    peer.push(1)
    peer.deliver(now_s=0.0)
    peer.connection.check(300.0, 0)
    assert peer.told == []
    filler.release()
    assert peer.is_reading
    peer.connection.check(301.0, 0)
    peer.connection.check(330.0, 0)
    assert peer.told == []
    peer.connection.check(332.0, 0)
    assert peer.told == ["abort"]
    lose(peer)
    assert host.held == (0, 0)


def test_a_connection_that_drains_answers_what_was_asked_and_closes(host: Shared) -> None:
    peer = host.peer()
    peer.greet()
    peer.push(1)
    peer.lookup()
    peer.deliver()
    peer.connection.drain()
    assert (peer.told, peer.is_reading) == ([], False)
    peer.run()
    assert peer.told == []
    peer.run()
    assert peer.told[:1] == ["close"]
