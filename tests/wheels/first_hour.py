"""What a new user does in the first hour, run by the Python of a bare environment: the package is
the installed one, a server starts, all faces of the client work, a store is kept."""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import hybridps as hps


def started(data: str) -> tuple[subprocess.Popen[str], str]:
    """A server of this environment and its URL."""
    ports = ("--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0")
    sizes = ("--dram", "16MiB", "--nvme", "128MiB")
    server = subprocess.Popen(
        [sys.executable, "-m", "hybridps.server", "--data", data, *ports, *sizes],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    line = server.stdout.readline().split()
    assert line[:2] == ["hybridps", "ready"], line
    return server, line[2]


async def read_async(url: str, keys: np.ndarray) -> np.ndarray:
    """The rows as an inference service reads them."""
    async with hps.aio.connect(url) as ps:
        return await ps.table("item").lookup(keys)


def main() -> None:
    """Raises where anything is not as it should be."""
    assert Path(sys.prefix) in Path(hps.__file__).parents, hps.__file__
    keys = np.arange(1000, dtype=np.uint64)
    gradients = np.ones((1000, 8), np.float32)
    spec = hps.TableSpec("item", 8, optimizer=hps.SGD(learning_rate=0.5), initializer=hps.Zeros())
    with tempfile.TemporaryDirectory() as folder:
        server, url = started(f"{folder}/served")
        try:
            with hps.connect(url) as ps:
                ps.create_table(spec).apply_gradients(keys, gradients)
                assert (ps.table("item").lookup(keys) == -0.5).all()
            assert (asyncio.run(read_async(url, keys)) == -0.5).all()
            program = Path(sys.executable).with_name("hybridps")
            listed = subprocess.run(
                [program, "table", "list", "--url", url], capture_output=True, text=True, check=True
            )
            assert "item" in listed.stdout
        finally:
            server.terminate()
            assert server.wait(60) == 0
        with hps.connect(f"local:{folder}/own", dram="16MiB", nvme="128MiB") as ps:
            ps.create_table(spec).assign(keys, gradients)
        with hps.connect(f"local:{folder}/own", dram="16MiB", nvme="128MiB") as ps:
            assert (ps.table("item").lookup(keys) == 1).all()
    print("numpy", np.__version__, "hybridps", hps.__version__)


if __name__ == "__main__":
    main()
