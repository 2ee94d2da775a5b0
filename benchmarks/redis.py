"""Through the server: rows by key, beside Redis doing the same job over the same kind of socket.

    python benchmarks/redis.py [--keys 1000000] [--dim 16] [--rounds 20]

Both sides get the same unique keys of batches of 106,496 ids over a Unix socket. Look-up is MGET
of rows; training is MGET of row and accumulator, and MSET of the new ones (the update itself, which
Redis would leave to the trainer, is not counted against it). Skipped by name without redis-server
or hiredis.
"""

import argparse
import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from yardstick import BATCH, Keys, Workload, interleaved, print_machine, print_result

import hybridps as hps
from hybridps.demo.server import MIB, Server

BATCHES = 8
CHUNK = 8192  # keys a command; all commands of a batch are pipelined


class Redis:
    """A Redis of our own on a Unix socket, without persistence."""

    def __enter__(self) -> Self:
        import hiredis  # noqa: PLC0415

        self._pack = hiredis.pack_command
        self._reader = hiredis.Reader()
        self._room = tempfile.mkdtemp(prefix="hybridps-redis-")
        path = Path(self._room, "socket")
        flags = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            ["redis-server", *flags, "--dir", self._room], stdout=subprocess.DEVNULL
        )
        for _ in range(200):
            if path.exists():
                break
            time.sleep(0.05)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._room, ignore_errors=True)

    def mget(self, keys: Keys, width: int) -> NDArray[np.float32]:
        """float32[n, width]; all keys must be there."""
        names = split(keys.tobytes(), 8)
        commands = [
            self._pack((b"MGET", *names[low : low + CHUNK])) for low in range(0, len(names), CHUNK)
        ]
        values = b"".join(value for reply in self._call(commands) for value in reply)
        return np.frombuffer(values, np.float32).reshape(len(keys), width)

    def mset(self, keys: Keys, rows: NDArray[np.float32]) -> None:
        """Stores the rows."""
        names, values = split(keys.tobytes(), 8), split(rows.tobytes(), rows.shape[1] * 4)
        commands = []
        for low in range(0, len(names), CHUNK):
            part = slice(low, low + CHUNK)
            arguments = [x for pair in zip(names[part], values[part], strict=True) for x in pair]
            commands.append(self._pack((b"MSET", *arguments)))
        self._call(commands)

    def _call(self, commands: list[bytes]) -> list[Any]:
        for command in commands:
            self._socket.sendall(command)
        replies: list[Any] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(1 << 20))
            else:
                replies.append(reply)
        return replies


def split(data: bytes, width: int) -> list[bytes]:
    return [data[low : low + width] for low in range(0, len(data), width)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    flags = parser.parse_args()
    missing = [] if shutil.which("redis-server") else ["redis-server"]
    missing += [] if importlib.util.find_spec("hiredis") else ["hiredis"]
    if missing:
        print(f"skipped: {' and '.join(missing)} not installed")
        return
    print_machine("hiredis")
    print(subprocess.check_output(["redis-server", "--version"], text=True).strip())
    compare(flags.keys, flags.dim, flags.rounds)


def compare(count: int, dim: int, rounds: int) -> None:
    work = Workload(count)
    all_keys = work.all_keys()
    unique = [np.unique(all_keys[work.rows()]) for _ in range(BATCHES)]
    gradients = [work.random.standard_normal((len(u), dim), np.float32) * 0.01 for u in unique]
    state = [np.tile(g, 2) for g in gradients]
    keys = sum(map(len, unique)) // BATCHES
    print(f"{len(all_keys):,} keys, dim {dim}, {keys:,} unique keys of {BATCH:,} ids a batch")
    dram = (count * (64 + 8 * dim) // MIB + 256) * MIB
    with Redis() as redis, Server(dram) as server, hps.connect(server.url, timeout=60.0) as ps:
        table = ps.create_table(hps.TableSpec("bench", dim=dim, optimizer=hps.Adagrad(0.05)))
        for low in range(0, len(all_keys), BATCH):
            part = all_keys[low : low + BATCH]
            redis.mset(part, table.lookup_or_insert(part))
        read = {"hybridps": lambda i: table.lookup(unique[i % BATCHES]),
                "redis": lambda i: redis.mget(unique[i % BATCHES], dim)}  # fmt: skip
        report("lookup", keys, interleaved(read, rounds))
        for low in range(0, len(all_keys), BATCH):
            part = all_keys[low : low + BATCH]
            redis.mset(part, np.zeros((len(part), 2 * dim), np.float32))

        def train(i: int) -> None:
            table.lookup_or_insert(unique[i % BATCHES])
            table.apply_gradients(unique[i % BATCHES], gradients[i % BATCHES])

        def train_redis(i: int) -> None:
            redis.mget(unique[i % BATCHES], 2 * dim)
            redis.mset(unique[i % BATCHES], state[i % BATCHES])

        report("train", keys, interleaved({"hybridps": train, "redis": train_redis}, rounds))


def report(what: str, keys: int, times: dict) -> None:
    ours, theirs = (keys / times[side].wall_s for side in ("hybridps", "redis"))
    print(f"{what:7} hybridps {ours / 1e6:6.2f} Mkeys/s   redis {theirs / 1e6:6.2f} Mkeys/s")
    print_result(f"redis-{what}", keys_s=ours, redis_keys_s=theirs, ratio=ours / theirs)


if __name__ == "__main__":
    main()
