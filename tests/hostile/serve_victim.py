"""A server for the attacks: `serve_victim.py SOCKET asyncio|uvloop`; prints `ready`."""

import asyncio
import socket
import sys
import tempfile

import uvloop
from support.wired import Counts, FakeService, Threads

from hybridps import _core
from hybridps.rpc.listener import Limits, Listener

SPEC = """{"name": "item", "dim": 64, "optimizer": {"kind": "sgd"}, "learning_rate": 1.0,
"initializer": {"kind": "zeros"}, "seed": 7, "dtype": "float32", "dram": null, "nvme": null}"""


async def main(path: str, folder: str) -> None:
    store = _core.Store(folder, dram=64 << 20, nvme=256 << 20, durability="none", threads=1)
    store.create_table(SPEC)
    service = FakeService()
    service.handlers["flush"] = lambda *_: 1 // 0
    service.handlers["tables"] = lambda *_: None
    limits = Limits(
        frame_bytes=16 << 20,
        keys=1 << 20,
        connections=400,
        inflight_bytes=64 << 20,
        frame_s=3.0,
        pressed_s=0.5,
    )
    listener = Listener(store, service, Threads(), Counts(), limits)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(path)
    await listener.listen(bound)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run = uvloop.run if sys.argv[2] == "uvloop" else asyncio.run
    with tempfile.TemporaryDirectory() as data:
        run(main(sys.argv[1], data))
