"""Goal: no peer, hostile or dying, hurts the server or other peers. Method: one attack at a time
against a real process on both loops; after each, a well-behaved client gets its answer, and the
memory of the process is what it was."""

import contextlib
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from support.server import environment
from support.wired import feed

from hybridps import _core
from hybridps.rpc import schemas

TESTS = Path(__file__).parents[1]
DIM = 64
MIB = 1 << 20
EMPTY = schemas.new_params("flush").to_bytes()


class Victim:
    """`serve_victim.py` in a process of its own."""

    def __init__(self, path: str, loop: str) -> None:
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("serve_victim.py")), path, loop],
            env=environment(PYTHONPATH=os.pathsep.join([str(TESTS), *sys.path])),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def resident(self) -> int:
        """Bytes of memory that the process has touched."""
        statm = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii")
        return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(self.path)
        return sock

    def probe(self) -> None:
        """A well-behaved client is served."""
        with Peer(self.connect()) as peer:
            rows = peer.rows(peer.lookup(100))
            assert rows.shape == (100 * DIM,)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Peer:
    """A client on a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.machine = _core.ClientConnection()
        self.hello, data = self.machine.start(5, "")
        sock.sendall(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, call: tuple[int, list[_core.Buffer]]) -> int:
        for buffer in call[1]:
            self.sock.sendall(buffer)
        return call[0]

    def lookup(self, count: int) -> int:
        return self.send(self.machine.lookup([(1, np.arange(count, dtype=np.uint64))], False))

    def answer(self, question: int) -> _core.Answer:
        while True:
            data = self.sock.recv(1 << 18)
            assert data, self.machine.closed
            for answer in feed(self.machine, data):
                if answer.question == question:
                    return answer

    def rows(self, question: int) -> np.ndarray:
        answer = self.answer(question)
        assert answer.kind == "rows", answer.exception
        return np.frombuffer(answer.rows[0][0], np.float32)


@pytest.fixture(params=["asyncio", "uvloop"])
def victim(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Victim]:
    running = Victim(str(tmp_path / "victim.sock"), request.param)
    try:
        running.probe()
        yield running
        running.probe()
        assert running.process.poll() is None
    finally:
        running.close()


def ending(sock: socket.socket) -> str:
    """Reads to the end; the reason that the server gave."""
    machine = _core.ClientConnection()
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(1 << 16):
            feed(machine, data)
    sock.close()
    return machine.closed or ""


def greeting() -> bytes:
    return _core.ClientConnection().start(5, "")[1]


def test_connect_and_close(victim: Victim) -> None:
    for _ in range(300):
        victim.connect().close()


def test_bytes_in_the_first_instant_then_close(victim: Victim) -> None:
    for _ in range(100):
        with victim.connect() as sock:
            sock.sendall(greeting())
            assert sock.recv(4096)


def test_half_close_is_answered_before_it_ends(victim: Victim) -> None:
    for _ in range(50):
        sock = victim.connect()
        peer = Peer(sock)
        question = peer.lookup(1000)
        sock.shutdown(socket.SHUT_WR)
        assert len(peer.rows(question)) == 1000 * DIM
        assert sock.recv(4096) == b""
        sock.close()
    sock = victim.connect()
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(4096) == b""
    sock.close()


def test_random_bytes(victim: Victim) -> None:
    rnd = random.Random(1)
    for _ in range(100):
        sock = victim.connect()
        with contextlib.suppress(ConnectionError):
            sock.sendall(rnd.randbytes(512))
        sock.shutdown(socket.SHUT_WR)
        ending(sock)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (bytes(4096), "no root pointer"),
        (struct.pack("<IIQ", 0, 1, 0x0001_0001_0000_0000 | 0x7FFF_FFF0), "out of bounds"),
        (struct.pack("<II", 0, 0xFFFF_FFF0), "exceeds size limit"),
        (struct.pack("<II", 600, 1), "too many segments"),
        (struct.pack("<III", 1, 0x7FFF_FFFF, 0x7FFF_FFFF), "exceeds size limit"),
    ],
    ids=["zeros", "bad root", "34 GB", "600 segments", "two huge segments"],
)
def test_malformed_frames_are_told_why(victim: Victim, data: bytes, reason: str) -> None:
    sock = victim.connect()
    sock.sendall(data)
    assert reason in ending(sock)


def test_bit_flipped_calls(victim: Victim) -> None:
    rnd = random.Random(7)
    machine = _core.ClientConnection()
    hello = machine.start(5, "")[1]
    keys = np.arange(100, dtype=np.uint64)
    rows = np.ones((100, DIM), np.float32)
    calls = [
        b"".join(bytes(b) for b in machine.lookup([(1, keys)], True)[1]),
        b"".join(bytes(b) for b in machine.lookup_or_insert([(1, keys, None)])[1]),
        b"".join(bytes(b) for b in machine.apply_gradients(1, 1, [(1, keys, rows)])[1]),
        b"".join(bytes(b) for b in machine.call("tables", EMPTY)[1]),
    ]
    for _ in range(400):
        flipped = bytearray(hello + rnd.choice(calls))
        for _ in range(rnd.randint(1, 6)):
            at = rnd.randrange(len(hello) - 200, min(len(hello) + 200, len(flipped)))
            flipped[at] ^= 1 << rnd.randrange(8)
        sock = victim.connect()
        with contextlib.suppress(ConnectionError):
            sock.sendall(flipped)
            sock.shutdown(socket.SHUT_WR)
        ending(sock)


def test_amplification_by_overlapping_lists_is_refused(victim: Victim) -> None:
    """A thousand batches that point at the same keys: a small frame that asks for 256 MB."""
    keys = np.arange(1000, dtype=np.uint64)
    batches = [(1, keys)] + [(1, keys[:0])] * 1000
    with Peer(victim.connect()) as peer:
        question, buffers = peer.machine.lookup(batches, False)
        frame = bytearray(b"".join(bytes(b) for b in buffers))
        end = len(frame) - keys.nbytes
        first = end - 16 * len(batches)
        for pointer in range(first + 8, end, 16):
            offset = (end - pointer - 8) // 8
            struct.pack_into("<II", frame, pointer, offset << 2 | 1, keys.nbytes << 3 | 2)
        peer.sock.sendall(bytes(frame))
        answer = peer.answer(question)
        assert answer.exception is not None
        assert answer.exception[1] == "BadInputError"
        assert "overlap" in answer.exception[2]


def test_promised_megabytes_that_never_come_are_bounded(victim: Victim) -> None:
    before = victim.resident()
    socks = [victim.connect() for _ in range(20)]
    for sock in socks:
        sock.sendall(greeting() + struct.pack("<II", 0, 15 * MIB // 8) + bytes(1024))
    time.sleep(0.2)
    victim.probe()
    # The bound of frames in flight is 32 MiB; 300 MB are promised.
    assert victim.resident() - before < 40 * MIB
    # While they hold what others wait for, they are soon sent away.
    for sock in socks:
        ending(sock)


def test_clients_that_never_read(victim: Victim) -> None:
    before = victim.resident()
    peers = [Peer(victim.connect()) for _ in range(20)]
    for peer in peers:
        peer.lookup(40_000)
    deadline = time.monotonic() + 3
    peak = 0
    while time.monotonic() < deadline:
        peak = max(peak, victim.resident() - before)
        victim.probe()
        time.sleep(0.05)
    # 20 replies of 10 MB are 200 MB; the victim's bound is 32 MiB for all replies in flight,
    # and as much may stay in the pool of buffers.
    assert peak < 96 * MIB, f"{peak >> 20} MiB"
    for peer in peers:
        peer.sock.close()


def test_a_client_killed_in_its_calls(victim: Victim) -> None:
    for _ in range(10):
        peer = Peer(victim.connect())
        for _ in range(8):
            peer.lookup(20_000)
        # As the kernel does it for a process that is killed: reset, unread bytes and all.
        linger = struct.pack("ii", 1, 0)
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        peer.sock.close()


def test_finish_before_return(victim: Victim) -> None:
    with Peer(victim.connect()) as peer:
        for _ in range(200):
            peer.machine.forget(peer.lookup(500))
        peer.sock.sendall(peer.machine.pending_bytes())
        assert len(peer.rows(peer.lookup(10))) == 10 * DIM
        assert peer.machine.closed is None


def test_a_handler_that_raises(victim: Victim) -> None:
    with Peer(victim.connect()) as peer:
        answer = peer.answer(peer.send(peer.machine.call("flush", EMPTY)))
        assert answer.exception is not None
        kind, name, text = answer.exception
        assert (kind, name) == ("failed", "HybridPSError")
        assert "Traceback" not in text
        assert len(peer.rows(peer.lookup(10))) == 10 * DIM


def test_questions_without_finish_are_bounded(victim: Victim) -> None:
    bootstrap = bytearray(greeting()[:48])
    flood = bytearray()
    for question in range(70_000):
        struct.pack_into("<I", bootstrap, 32, question)
        flood += bootstrap
    with victim.connect() as sock:
        sock.setblocking(False)
        assert b"too many questions without Finish" in exchange(sock, bytes(flood))


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Writes and reads at once until the server closes; all that it said."""
    rest, said = memoryview(data), bytearray()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        select.select([sock], [sock] if rest else [], [], 5)
        try:
            rest = rest[sock.send(rest[: 1 << 16]) :]
        except BlockingIOError:
            pass
        except ConnectionError:
            rest = rest[:0]
        try:
            more = sock.recv(1 << 18)
        except BlockingIOError:
            continue
        except ConnectionError:
            more = b""
        said += more
        if not more:
            return bytes(said)
    raise AssertionError("the server did not end the connection")
