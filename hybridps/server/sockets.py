"""Listening sockets: bound before the store is opened, so that a taken port fails at once.

A bound socket that does not listen yet refuses connections, so no client waits on recovery.
"""

import contextlib
import errno
import os
import socket
import stat
from pathlib import Path

from hybridps.config import Address

# Shorter by one than sun_path, which ends in a zero byte.
UNIX_PATH_MAX = 107
_PROBE_S = 1.0  # A live server on this machine accepts far sooner.


class StartError(Exception):
    """The server cannot start; the text is the one line that a person gets."""


class UnixSocket:
    """A bound unix socket and the file that stands for it."""

    def __init__(self, path: Path, bound: socket.socket) -> None:
        self.path = path
        self.socket = bound
        self._made = _identity(path)

    def remove(self) -> None:
        """Removes the file, unless another server has put its own there meanwhile."""
        with contextlib.suppress(OSError):
            if _identity(self.path) == self._made:
                self.path.unlink()


def _identity(path: Path) -> tuple[int, int, int]:
    # The number alone is given again, often at once, when a file was removed.
    status = path.lstat()
    return status.st_dev, status.st_ino, status.st_mtime_ns


def bind_tcp(address: Address) -> socket.socket:
    """A bound, not yet listening, socket. Raises StartError naming the address and the cause."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise StartError(f"cannot resolve {address.host}: {error.strerror}") from None
    bound = socket.socket(family, kind, protocol)
    try:
        # Without it a restart waits out the connections that the last process closed.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
    except OSError as error:
        bound.close()
        raise StartError(cannot_listen(str(address), error)) from None
    return bound


def bind_unix(path: Path, data: Path) -> UnixSocket:
    """A bound, not yet listening, unix socket; a file left by a dead server is replaced.

    It may lie in the data directory, which is made for it: the store is opened only later.
    Raises: StartError when a live server answers there, or something else has the name.
    """
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise StartError(
            f"unix socket path {path} is longer than {UNIX_PATH_MAX} bytes; give a shorter --unix"
        )
    if path.absolute().parent == data.absolute():
        with contextlib.suppress(OSError):  # The store says better what is wrong with it.
            _make_directory(data.absolute())
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise StartError(_cannot_make(path, error)) from None
    return UnixSocket(path, bound)


def cannot_listen(address: str, error: OSError) -> str:
    """The line for a failed bind."""
    if error.errno == errno.EADDRINUSE:
        return (
            f"cannot listen on {address}: the port is in use by another process;"
            " stop it, or give another port"
        )
    cause = os.strerror(error.errno or 0).lower()
    return f"cannot listen on {address}: {cause}; give an address of this machine and a free port"


def _make_directory(path: Path) -> None:
    """Makes it and those above it; what was made survives a power cut."""
    missing = [place for place in (path, *path.parents) if not place.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for place in missing:
        parent = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def _cannot_make(path: Path, error: OSError) -> str:
    return (
        f"cannot make unix socket {path}: {(error.strerror or str(error)).lower()};"
        " give --unix in a directory that is there and that this user may write"
    )


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StartError(_cannot_make(path, error)) from None
    if not stat.S_ISSOCK(mode):
        raise StartError(f"{path} exists and is not a socket; remove it, or give another --unix")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            raise StartError(f"cannot use unix socket {path}: {error.strerror}") from None
    raise StartError(
        f"unix socket {path} is in use by another process; stop it, or give another --unix"
    )
