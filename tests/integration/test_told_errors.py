"""Goal: each mistake that a user makes is told by its class, and by a text that names the thing,
the value that was seen and what to do. Method: the mistakes, one after the other, by the public
client against a real server, or by the command line of a server that cannot start."""

import dataclasses
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.server import ServerProcess, run_to_end

import hybridps as hps

SPEC = hps.TableSpec("item", 4, hps.Adagrad(0.05))
ONES = np.ones((2, 4), np.float32)
NAN = np.array([[1, 1, 1, 1], [1, 1, np.nan, 1]], np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("told") / "d") as server:
        yield server


@pytest.fixture(scope="module")
def ps(server: ServerProcess) -> Iterator[hps.ParameterServer]:
    with hps.connect(server.url) as ps:
        ps.create_table(SPEC)
        yield ps


MISTAKES: dict[str, tuple[type[hps.HybridPSError], Callable[[Any], object], list[str]]] = {
    "wrong dtype": (
        hps.BadInputError,
        lambda ps: ps.table("item").apply_gradients([1, 2], ONES.astype(np.float64)),
        ["table 'item'", "gradients are float64", "gradients.astype(numpy.float32)"],
    ),
    "wrong shape": (
        hps.BadInputError,
        lambda ps: ps.table("item").apply_gradients([1, 2, 3], ONES),
        ["table 'item'", "gradients have shape (2, 4)", "keys have (3,)", "give", "(3, 4)"],
    ),
    "NaN gradient": (
        hps.BadInputError,
        lambda ps: ps.table("item").apply_gradients([1, 7], NAN),
        ["table 'item'", "gradients of key 7 hold nan at column 2", "clip or skip it"],
    ),
    "float keys": (
        hps.BadInputError,
        lambda ps: ps.table("item").lookup([1.5]),
        ["table 'item'", "keys are float", "cast them to integers"],
    ),
    "unknown table": (
        hps.TableNotFoundError,
        lambda ps: ps.table("itme"),
        ['table "itme"', "does not exist", "create it"],
    ),
    "mismatched spec": (
        hps.TableMismatchError,
        lambda ps: ps.create_table(dataclasses.replace(SPEC, dim=8, seed=3)),
        ['table "item"', "dim is 4, asked 8", "seed is 0, asked 3", "choose another name"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_bad_call(ps: hps.ParameterServer, mistake: str) -> None:
    error, call, parts = MISTAKES[mistake]
    with pytest.raises(error) as caught:
        call(ps)
    assert_told(str(caught.value), parts)
    assert ps.table("item").size() == 0, "a refused call changes nothing"


def assert_told(text: str, parts: list[str]) -> None:
    assert all(part in text for part in parts), text
    assert "\n" not in text


@pytest.mark.parametrize("is_unix", [False, True])
def test_an_absent_server(tmp_path: Path, is_unix: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = tmp_path / "absent.sock"
    url = f"hps+unix://{path}" if is_unix else f"hps://127.0.0.1:{port}"
    start = f"--unix {path}" if is_unix else f"--listen 127.0.0.1:{port}"
    with pytest.raises(hps.UnavailableError) as caught:
        hps.connect(url, timeout=0.2)
    assert isinstance(caught.value, ConnectionError)
    assert_told(str(caught.value), [f"no server answers at {url}", "0.2 s", start, "URL"])


def refused(tmp_path: Path, *changes: str, code: int = 1, **environ: str) -> str:
    """What a server says that does not start, given arguments that are fine but for `changes`."""
    flags = {"--data": str(tmp_path / "d"), "--listen": "127.0.0.1:0", "--ops": "off"}
    flags |= {"--dram": "8MiB", "--nvme": "64MiB"}
    flags |= dict(zip(changes[::2], changes[1::2], strict=True))
    done = run_to_end(*(word for flag in flags.items() for word in flag), **environ)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line.removeprefix("hybridps: ")


def test_a_port_in_use(tmp_path: Path, server: ServerProcess) -> None:
    address = server.url.removeprefix("hps://")
    told = refused(tmp_path, "--listen", address)
    assert_told(told, [f"cannot listen on {address}", "in use", "give another port"])


def test_an_unwritable_directory(tmp_path: Path) -> None:
    told = refused(tmp_path, "--data", "/proc/tables")
    assert_told(told, ["data directory /proc/tables", "give a directory that this user may write"])
    with pytest.raises(hps.ConfigError) as caught:
        hps.connect("local:/proc/tables", dram="8MiB", nvme="64MiB")
    assert str(caught.value) == told
    with pytest.raises(
        hps.ConfigError, match=r"free at '/proc/tables' are less than the 64MiB .*give"
    ):
        hps.connect("local:/proc/tables")


def test_a_directory_in_use(tmp_path: Path, server: ServerProcess) -> None:
    told = refused(tmp_path, "--data", str(server.data))
    owner = f"in use by process {server.process.pid}"
    assert_told(told, [f"data directory {server.data}", owner, "give another directory"])
    with pytest.raises(hps.ConfigError) as caught:
        hps.connect(f"local:{server.data}", dram="8MiB", nvme="64MiB")
    assert str(caught.value) == told


def test_a_bad_config_key(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('durabilty = "always"\n')
    told = refused(tmp_path, "--config", str(file), code=2)
    assert_told(told, ["unknown key 'durabilty'", str(file), "nearest known one is durability"])
    told = refused(tmp_path, code=2, HYBRIDPS_DURABILTY="always")
    assert_told(told, ["HYBRIDPS_DURABILTY", "nearest known one is HYBRIDPS_DURABILITY"])
    told = refused(tmp_path, "--durabilty", "always", code=2)
    assert_told(told, ["'--durabilty'", "nearest known one is --durability"])
    told = refused(tmp_path, "--durability", "alway", code=2)
    assert_told(told, ["--durability is 'alway'", "give one of none", "did you mean always?"])


def test_a_dram_that_is_too_small(tmp_path: Path) -> None:
    told = refused(tmp_path, "--dram", "4MiB", code=2)
    assert_told(told, ["--dram is '4MiB'", "give at least 8MiB"])
    with pytest.raises(hps.ConfigError, match="dram is 4194304 bytes; give at least 8 MiB"):
        hps.connect(f"local:{tmp_path / 'd'}", dram="4MiB")


def fill(table: hps.Table) -> tuple[int, str]:
    """Makes rows until they are refused: how many calls were taken, and what was said then."""
    for first in range(0, 20_000, 100):
        try:
            table.lookup_or_insert(range(first, first + 100))
        except hps.StoreFullError as error:
            return first, str(error)
    raise AssertionError("20,000 rows went in, and no cap was met")


def test_the_disk_cap_reached(tmp_path: Path) -> None:
    wide = hps.TableSpec("wide", 1024, hps.Adagrad(0.05), hps.Zeros())
    with (
        ServerProcess(tmp_path / "d", dram="8MiB", nvme="64MiB") as server,
        hps.connect(server.url) as ps,
    ):
        table = ps.create_table(wide)
        taken, told = fill(table)
        assert_told(told, ['table "wide"', "new keys", "raise nvme", "or remove keys"])
        assert re.search(r"take all rows to \d+ bytes on NVMe, of \d+ allowed", told), told
        assert taken <= table.size() < taken + 100
        assert taken > 1000
        assert table.remove(range(100)) == 100
        table.lookup_or_insert(range(50))
        table.alter(nvme="1MiB")
        with pytest.raises(hps.StoreFullError, match=r"take its rows to .* of 1048576 allowed"):
            table.assign([1 << 40], np.ones((1, 1024), np.float32))


def test_more_keys_than_a_message_may_name_come_in_parts(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path / "d", HYBRIDPS_KEYS_LIMIT="100") as server,
        hps.connect(server.url) as ps,
    ):
        table = ps.create_table(SPEC)
        table.apply_gradients(range(101), np.ones((101, 4), np.float32))
        assert table.size() == 101
