"""Goal: a place that cannot be listened on is told at once and left as it is; only what a dead
server left behind is replaced. Method: real sockets and files of every other kind."""

import os
import socket
from pathlib import Path

import pytest

from hybridps.config import Address
from hybridps.server.sockets import UNIX_PATH_MAX, StartError, bind_tcp, bind_unix


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def refuses(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def test_a_bound_socket_refuses_until_it_listens(tmp_path: Path, data: Path) -> None:
    unix = bind_unix(tmp_path / "s", data)
    assert refuses(unix.path)
    unix.socket.listen()
    assert not refuses(unix.path)
    unix.socket.close()
    unix.remove()
    assert not unix.path.exists()
    assert not data.exists(), "only a socket within it makes the data directory"


def test_what_a_dead_server_left_is_replaced(tmp_path: Path, data: Path) -> None:
    first = bind_unix(tmp_path / "s", data)
    first.socket.close()
    second = bind_unix(tmp_path / "s", data)
    first.remove()
    assert second.path.exists(), "it is another's by now"
    second.socket.close()
    second.remove()
    second.remove()


def test_a_live_server_keeps_its_socket(tmp_path: Path, data: Path) -> None:
    live = bind_unix(tmp_path / "s", data)
    live.socket.listen()
    with pytest.raises(StartError, match="in use by another process"):
        bind_unix(live.path, data)
    assert not refuses(live.path)
    live.socket.close()


def test_what_is_no_socket_stays(tmp_path: Path, data: Path) -> None:
    file, folder, link = (tmp_path / name for name in ("file", "folder", "link"))
    file.write_text("mine")
    folder.mkdir()
    link.symlink_to(file)
    for path in (file, folder, link):
        with pytest.raises(StartError, match="is not a socket; remove it"):
            bind_unix(path, data)
    assert file.read_text() == "mine"
    assert link.is_symlink()


def test_a_path_that_no_socket_can_have(tmp_path: Path, data: Path) -> None:
    longest = tmp_path / ("x" * (UNIX_PATH_MAX - len(os.fsencode(tmp_path)) - 1))
    bind_unix(longest, data).socket.close()
    with pytest.raises(StartError, match=f"longer than {UNIX_PATH_MAX} bytes"):
        bind_unix(longest.with_name(longest.name + "x"), data)
    with pytest.raises(StartError, match=r"absent/s.*no such file.*--unix in a directory"):
        bind_unix(tmp_path / "absent" / "s", data)


def test_within_the_data_directory(data: Path) -> None:
    unix = bind_unix(data / "deep" / "s", data / "deep")
    assert unix.path.is_socket()
    unix.socket.close()


def test_a_port_and_a_host() -> None:
    with bind_tcp(Address("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
        first.listen()
        with pytest.raises(StartError, match=f"127.0.0.1:{port}: the port is in use"):
            bind_tcp(Address("127.0.0.1", port))
    bind_tcp(Address("127.0.0.1", port)).close()
    with pytest.raises(StartError, match=r"192\.0\.2\.1:0.*address of this machine"):
        bind_tcp(Address("192.0.2.1", 0))
    with pytest.raises(StartError, match=r"cannot resolve no\.such\.host\.invalid"):
        bind_tcp(Address("no.such.host.invalid", 1))
