"""Goal: a server says ready once and truthfully, or says in one line why it cannot start, with
the exit code of the contract. Method: real processes; ports, files and locks taken by others."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from pathlib import Path

import capnp
import pytest
from support.server import ServerProcess, environment, run_to_end
from support.stock import stock_session

import hybridps as hps


def assert_refused(code: int, parts: list[str], *arguments: str, **environ: str) -> None:
    done = run_to_end(*arguments, **environ)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("hybridps: ")
    for part in parts:
        assert part in line


def quiet(data: Path, *arguments: str) -> list[str]:
    """Arguments that succeed unless those given do not."""
    return [
        *("--data", str(data), "--dram", "8MiB", "--nvme", "64MiB"),
        *("--listen", "127.0.0.1:0", "--ops", "127.0.0.1:0"),
        *arguments,
    ]


def test_the_ready_line_is_the_only_output_and_true(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d") as server:
        expected = rf"hybridps ready hps://127\.0\.0\.1:\d+ data={re.escape(str(tmp_path / 'd'))}"
        assert re.fullmatch(expected + " dram=16MiB tables=0", server.ready_line)
        host, port = server.address
        assert int(port) > 0
        socket.create_connection((host, int(port)), 5).close()
        assert server.ready["url"] == server.url
        assert server.stop() == 0
        assert server.process.stdout is not None
        assert not server.process.stdout.read()
        assert [e["event"] for e in server.events()] == ["ready", "draining", "stopped"]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), 5)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_both_loops_serve(tmp_path: Path, loop: str) -> None:
    with ServerProcess(tmp_path / "d", "--loop", loop) as server:
        assert server.ready["loop"] == loop
        async with capnp.kj_loop(), stock_session(server.address) as ps:
            assert await ps.hello(1) == 0
        assert server.stop() == 0


def test_settings_come_from_flags_environment_and_file(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('durability = "process"\nthreads = 3\nlog_format = "text"\n')
    environ = {"HYBRIDPS_DURABILITY": "none", "HYBRIDPS_LOG_FORMAT": "json"}
    arguments = ("--config", str(file), "--threads", "1")
    with ServerProcess(tmp_path / "d", *arguments, **environ) as server:
        assert (server.ready["durability"], server.ready["threads"]) == ("none", 1)


def test_bad_configuration_exits_2(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text("drum = '8MiB'\n")
    assert_refused(2, ["'drum'", "dram", str(file)], *quiet(tmp_path, "--config", str(file)))
    assert_refused(2, ["--dram is '1MiB'", "at least 8MiB"], "--dram", "1MiB")
    assert_refused(2, ["--nvme is '1MiB'", "at least 64MiB"], "--nvme", "1MiB")
    assert_refused(2, ["HYBRIDPS_DRAMM", "HYBRIDPS_DRAM"], HYBRIDPS_DRAMM="8MiB")
    assert_refused(2, ["0.0.0.0:0", "insecure = true"], *quiet(tmp_path, "--listen", "0.0.0.0:0"))
    assert_refused(2, ["--frobnicate"], "--frobnicate")


def test_an_insecure_bind_is_allowed_when_asked_for_and_warned_of(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d", "--listen", "0.0.0.0:0", HYBRIDPS_INSECURE="true") as server:
        (warning,) = [e for e in server.events() if e["level"] == "warning"]
        assert "without encryption" in warning["event"]
        assert warning["listen"] == "0.0.0.0:0"


def test_a_port_in_use_exits_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("--listen", "--ops"):
            parts = [f"cannot listen on {address}", "in use"]
            assert_refused(1, parts, *quiet(tmp_path / "d", flag, address))
    assert not (tmp_path / "d").exists(), "a refused start leaves no directory behind"


def test_an_address_of_another_machine_exits_1(tmp_path: Path) -> None:
    arguments = quiet(tmp_path / "d", "--listen", "192.0.2.1:7440")
    assert_refused(1, ["192.0.2.1:7440"], *arguments, HYBRIDPS_INSECURE="true")
    arguments = quiet(tmp_path / "d", "--listen", "no-such-host.invalid:7440")
    assert_refused(1, ["no-such-host.invalid"], *arguments, HYBRIDPS_INSECURE="true")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_exits_1(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    assert_refused(1, [str(locked)], *quiet(locked / "d"))


def test_an_unwritable_directory_exits_1(tmp_path: Path) -> None:
    # /proc refuses new entries even to root.
    assert_refused(1, ["/proc/hybridps"], *quiet(Path("/proc/hybridps")))
    file = tmp_path / "file"
    file.write_text("not a directory")
    assert_refused(1, [str(file)], *quiet(file))


def test_a_directory_in_use_exits_1_and_leaves_the_owner_alone(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d") as server:
        assert_refused(1, [str(tmp_path / "d"), "in use"], *quiet(tmp_path / "d"))
        assert server.http("/readyz")[0] == 200
        assert server.stop() == 0


def test_another_shard_than_the_stored_one_is_refused(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "d", "--shard", "1/2") as server:
        assert server.stop() == 0
    assert_refused(1, ["1/2", "0/2"], *quiet(tmp_path / "d", "--shard", "0/2"))


async def test_the_unix_socket_serves_and_is_removed_at_exit(tmp_path: Path) -> None:
    path = tmp_path / "hps.sock"
    with ServerProcess(tmp_path / "d", "--unix", str(path), "--listen", "off") as server:
        assert server.ready_line.startswith(f"hybridps ready hps+unix://{path} data=")
        async with capnp.kj_loop(), stock_session(str(path)) as ps:
            assert await ps.hello(1) == 0
        assert server.stop() == 0
    assert not path.exists()


async def test_tcp_and_unix_serve_together(tmp_path: Path) -> None:
    path = tmp_path / "hps.sock"
    with ServerProcess(tmp_path / "d", "--unix", str(path)) as server:
        async with (
            capnp.kj_loop(),
            stock_session(server.address) as tcp,
            stock_session(str(path)) as unix,
        ):
            table = await tcp.create_table("t", 2)
            assert await unix.create_table("t", 2) == table


def test_a_stale_unix_socket_is_replaced_and_a_live_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "hps.sock"
    with ServerProcess(tmp_path / "d", "--unix", str(path)) as server:
        server.kill()
    assert path.exists()
    with ServerProcess(tmp_path / "d", "--unix", str(path)) as server:
        parts = [str(path), "in use by another process"]
        assert_refused(1, parts, *quiet(tmp_path / "e", "--unix", str(path)))
        assert path.exists(), "a refused start must not take the owner's socket away"
        assert server.stop() == 0
    path.write_text("no socket")
    assert_refused(1, [str(path), "not a socket"], *quiet(tmp_path / "d", "--unix", str(path)))
    assert path.read_text() == "no socket"


def test_a_unix_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 120)
    assert_refused(1, ["107 bytes"], *quiet(tmp_path / "d", "--unix", str(path)))


@pytest.mark.parametrize("is_made", [False, True])
def test_the_socket_may_lie_in_the_data_directory(tmp_path: Path, is_made: bool) -> None:
    data = tmp_path / "deep" / "d"
    if is_made:
        data.mkdir(parents=True)
    for _ in range(2):
        unix = ("--unix", str(data / "hps.sock"), "--listen", "off")
        with ServerProcess(data, *unix) as server, hps.connect(server.url) as ps:
            assert ps.tables() == []
            assert server.stop() == 0
        assert not (data / "hps.sock").exists()


def test_a_socket_whose_directory_is_absent_is_refused(tmp_path: Path) -> None:
    unix = str(tmp_path / "absent" / "hps.sock")
    assert_refused(1, [unix, "give --unix in a directory"], *quiet(tmp_path / "d", "--unix", unix))


@pytest.mark.parametrize("module", ["server", "cli", "demo"])
def test_an_unbuilt_checkout_says_so_in_one_sentence(tmp_path: Path, module: str) -> None:
    copy = tmp_path / "checkout" / "hybridps"
    ignore = shutil.ignore_patterns("_core*", "__pycache__")
    shutil.copytree(Path(hps.__file__).parent, copy, ignore=ignore)
    environ = environment(PYTHONPATH=str(copy.parent))
    line = [sys.executable, "-m", f"hybridps.{module}"]
    done = subprocess.run(
        line, cwd=copy.parent, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (told,) = done.stderr.splitlines()
    assert f"not built in {copy.parent} " in told
    assert "`make setup`" in told
    line = [sys.executable, "-c", "import hybridps"]
    done = subprocess.run(
        line, cwd=copy.parent, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1].startswith("ImportError: hybridps: the engine is not built")


def test_serve_is_the_same_program(tmp_path: Path) -> None:
    arguments = quiet(tmp_path / "d", "--drm", "8MiB")
    line = [sys.executable, "-m", "hybridps.cli", "serve", *arguments]
    done = subprocess.run(
        line, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == run_to_end(*arguments).stderr
