"""Pooled lookups through the server: one row a bag, beside all rows that are summed here.

    python benchmarks/pooled.py [--bags 5000] [--ids 10] [--dim 64] [--rounds 20]

One unix socket, one call at a time, interleaved; ids below 2^32, each named once. Bytes are those
of one call, both ways, counted by a relay; they must be 1/8 of those of rows, the time a third.
"""

import argparse
import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from yardstick import interleaved, print_machine, print_result

import hybridps as hps
from hybridps.demo.datasets import mix
from hybridps.demo.server import MIB, Server


class Relay:
    """Passes the bytes of one connection on, and counts them."""

    def __init__(self, listener: socket.socket, server: Path) -> None:
        self.bytes = 0
        self._listener, self._server = listener, str(server)

    def run(self) -> None:
        ours, _ = self._listener.accept()
        theirs = socket.socket(socket.AF_UNIX)
        theirs.connect(self._server)
        threading.Thread(target=self._pass, args=(theirs, ours), daemon=True).start()
        self._pass(ours, theirs)

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 20):
                self.bytes += len(chunk)
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relayed(server: Server) -> Iterator[tuple[Relay, str]]:
    """A relay to the server, and its URL."""
    with tempfile.TemporaryDirectory(prefix="hybridps-pooled-") as room:
        path = str(Path(room, "relay"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen(1)
            relay = Relay(listener, server.room / "socket")
            threading.Thread(target=relay.run, daemon=True).start()
            yield relay, f"hps+unix://{path}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bags", type=int, default=5000)
    parser.add_argument("--ids", type=int, default=10)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    flags = parser.parse_args()
    print_machine("pycapnp")
    count = flags.bags * flags.ids
    ids = np.unique(mix(np.arange(2 * count, dtype=np.uint64)) >> np.uint64(32))
    bags = np.random.default_rng(1).permutation(ids)[:count].reshape(flags.bags, flags.ids)
    spec = hps.TableSpec("pooled", dim=flags.dim, optimizer=hps.SGD(0.05))
    with Server(count * (64 + 4 * flags.dim) + 256 * MIB) as server:
        with hps.connect(server.url, timeout=60.0) as ps:
            table = ps.create_table(spec)
            table.lookup_or_insert(bags)
            ways = {
                "pooled": lambda _: table.lookup(bags, pool="sum"),
                "rows": lambda _: table.lookup(bags).sum(axis=1),
                "unsummed": lambda _: table.lookup(bags),
            }
            times = interleaved(ways, flags.rounds)
        sent = {}
        for name, pool in (("pooled", "sum"), ("rows", None)):
            with relayed(server) as (relay, url), hps.connect(url) as ps:
                table = ps.table("pooled")
                table.lookup(bags[:1], pool=pool)
                before = relay.bytes
                table.lookup(bags, pool=pool)
                sent[name] = relay.bytes - before
    print(f"{flags.bags:,} bags of {flags.ids} ids, dim {flags.dim}, one unix socket")
    seconds = {name: measured.wall_s for name, measured in times.items()}
    print_result(
        "pooled",
        ms=seconds["pooled"] * 1e3,
        rows_ms=seconds["unsummed"] * 1e3,
        rows_summed_ms=seconds["rows"] * 1e3,
        time_ratio=seconds["pooled"] / seconds["unsummed"],
        time_ratio_summed=seconds["pooled"] / seconds["rows"],
        bytes=float(sent["pooled"]),
        bytes_ratio=sent["pooled"] / sent["rows"],
    )


if __name__ == "__main__":
    main()
