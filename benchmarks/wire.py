"""The wire: 50,000 rows of 64 floats a call, beside blocking sockets that carry the same bytes.

    python benchmarks/wire.py [--keys 50000] [--dim 64] [--rounds 40]

One connection, one call at a time. The yardstick is a process that answers every request of
8 n bytes with 4 n dim bytes it has ready: no lookup, no protocol. Beside our client stands a stock
pycapnp client, which reads the reply by view and knows nothing of hybridps but its schema. Last,
rows of 16 bits beside those of 32: over a socket of one machine they cost time and save bytes.
"""

import argparse
import asyncio
import ctypes
import multiprocessing
import os
import secrets
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import capnp
import numpy as np
from yardstick import Keys, interleaved, print_machine, print_result

import hybridps as hps
from hybridps.demo.datasets import mix
from hybridps.demo.server import MIB, Server

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "hybridps.capnp"
WORDS_MAX = 1 << 34  # traversal limit of a reader, in words


def answer(path: str, request_bytes: int, reply_bytes: int) -> None:
    """The yardstick's server: runs in its own process until the peer closes."""
    reply = memoryview(bytearray(reply_bytes))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        connection, _ = listener.accept()
        request = bytearray(request_bytes)
        with connection:
            while receive(connection, request):
                connection.sendall(reply)


def receive(connection: socket.socket, buffer: bytearray) -> bool:
    """Fills the buffer; False at the end of the stream."""
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            return False
        view = view[count:]
    return True


def keep_memory() -> None:
    """Restarts this script so that malloc keeps freed megabytes, as any user of pycapnp should.

    glibc otherwise returns every large reply to the kernel and takes it back page by page.
    """
    thresholds = {"MALLOC_MMAP_THRESHOLD_": "2147483648", "MALLOC_TRIM_THRESHOLD_": "4294967296",
                  "MALLOC_TOP_PAD_": "67108864"}  # fmt: skip
    if not thresholds.keys() <= os.environ.keys():
        command = [sys.executable, *sys.argv]
        os.execve(sys.executable, command, {**os.environ, **thresholds})  # noqa: S606


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=40)
    flags = parser.parse_args()
    print_machine("pycapnp")
    keys = mix(np.arange(flags.keys, dtype=np.uint64))
    dram = flags.keys * (64 + 8 * flags.dim) + 256 * MIB
    with Server(dram) as server, hps.connect(server.url, timeout=60.0) as ps:
        table = ps.create_table(hps.TableSpec("wire", dim=flags.dim, optimizer=hps.Adagrad(0.05)))
        table.lookup_or_insert(keys)
        compare(keys, flags.dim, flags.rounds, table)
        seconds = asyncio.run(capnp.run(stock(server.room / "socket", keys, flags.rounds)))
        report("wire-stock-pycapnp", flags, seconds)
        for dtype in ("bfloat16", "float16"):
            with hps.connect(server.url, timeout=60.0, wire_dtype=dtype) as narrow:
                compare_dtype(keys, flags.rounds, table, narrow.table("wire"), dtype)


def compare(keys: Keys, dim: int, rounds: int, table: hps.Table) -> None:
    with tempfile.TemporaryDirectory(prefix="hybridps-wire-") as room:
        path = str(Path(room, "plain"))
        sizes = (keys.nbytes, len(keys) * dim * 4)
        process = multiprocessing.get_context("spawn").Process(target=answer, args=(path, *sizes))
        process.start()
        try:
            times = interleaved(
                {"hybridps": lambda _: table.lookup(keys), "socket": plain(path, keys, sizes[1])},
                rounds,
            )
        finally:
            process.terminate()
            process.join()
    ours, theirs = times["hybridps"].wall_s, times["socket"].wall_s
    print(f"{len(keys):,} rows of {dim} floats, unix socket, one connection")
    print(f"hybridps client {rate(sizes[1], ours)}   blocking sockets {rate(sizes[1], theirs)}")
    print_result("wire-client", ms=ours * 1e3, socket_ms=theirs * 1e3, ratio=theirs / ours)
    Baseline.seconds = theirs


def compare_dtype(keys: Keys, rounds: int, table: hps.Table, narrow: hps.Table, dtype: str) -> None:
    """Rows of 16 bits beside those of 32, by the same server."""
    times = interleaved(
        {dtype: lambda _: narrow.lookup(keys), "float32": lambda _: table.lookup(keys)}, rounds
    )
    ours, wide = times[dtype].wall_s, times["float32"].wall_s
    print_result(f"wire-{dtype}", ms=ours * 1e3, float32_ms=wide * 1e3, ratio=ours / wide)


class Baseline:
    """The yardstick's median, for the comparison that cannot be interleaved with it."""

    seconds = 0.0


def plain(path: str, keys: Keys, reply_bytes: int) -> Callable[[int], object]:
    connection = socket.socket(socket.AF_UNIX)
    for _ in range(200):
        try:
            connection.connect(path)
            break
        except OSError:
            time.sleep(0.05)
    request, reply = keys.tobytes(), bytearray(reply_bytes)

    def call(_: int) -> None:
        connection.sendall(request)
        receive(connection, reply)

    return call


def release(reader: object) -> None:
    """Gives back the reference that pycapnp up to 2.2.4 keeps for each view it hands out."""
    if tuple(map(int, capnp.__version__.split(".")[:3])) <= (2, 2, 4):
        ctypes.pythonapi.Py_DecRef(ctypes.py_object(reader))


async def stock(path: Path, keys: Keys, rounds: int) -> float:
    """Median seconds of a call by a client made of pycapnp alone."""
    schema: Any = capnp.load(str(SCHEMA))
    stream = await capnp.AsyncIoStream.create_unix_connection(str(path))
    client = capnp.TwoPartyClient(stream, traversal_limit_in_words=WORDS_MAX)
    session = (await client.bootstrap().cast_as(schema.Gate).login("")).session
    await session.hello(session=secrets.randbits(62) | 1, clientId="")
    table = (await session.table("wire")).table.id
    data, times = keys.tobytes(), []
    for number in range(rounds + 2):
        start = time.perf_counter()
        reply = await session.lookup(tables=[{"table": table, "keys": data}], wantFound=False)
        part = reply.tables[0]
        rows = np.frombuffer(part.get_data_as_view("rows"), np.float32)
        if not len(rows):
            raise RuntimeError("an empty reply")
        release(part)
        if number >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def report(name: str, flags: argparse.Namespace, seconds: float) -> None:
    print(f"{name} {rate(flags.keys * flags.dim * 4, seconds)}")
    print_result(name, ms=seconds * 1e3, socket_ms=Baseline.seconds * 1e3,
                 ratio=Baseline.seconds / seconds)  # fmt: skip


def rate(count: int, seconds: float) -> str:
    return f"{seconds * 1e3:7.2f} ms {count / seconds / 2**30:5.2f} GiB/s"


if __name__ == "__main__":
    keep_memory()
    main()
