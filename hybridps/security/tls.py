"""TLS of both sides: contexts made of files, which say what is wrong with one by name.

A server's files are looked at again while it runs, so that a certificate is replaced without a
pause: connections that are open keep theirs, new ones get the new. TLS 1.2 is the oldest spoken.
"""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hybridps.errors import ConfigError

_OLDEST = ssl.TLSVersion.TLSv1_2


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """PEM files of a server. With `client_ca`, only clients with a certificate of it get in."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ClientFiles:
    """What a client trusts, and who it is. All optional.

    `ca`: PEM file of the authorities it trusts; those of the system unless given. `cert`, `key`:
    its own, for servers that ask for one. `server_name`: what the server's certificate is for, if
    not the host of the URL.
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    server_name: str | None = None

    def context(self) -> ssl.SSLContext:
        """For new connections. Raises ConfigError."""
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        context.minimum_version = _OLDEST
        if self.ca is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = _OLDEST
            _trust(context, self.ca, "tls ca")
        if self.cert is not None:
            _identify(context, self.cert, self.key or self.cert, "tls cert")
        return context


class ServerContext:
    """The context that a listener is given, which goes with the files."""

    def __init__(self, files: ServerFiles) -> None:
        self._files = files
        self._stamps = self._stamp()
        self._newest = _server_context(files)
        # Asked at every handshake, whether the client names a server or not.
        self.context = _server_context(files)
        self.context.sni_callback = self._choose

    def refresh(self) -> bool:
        """Reads the files if one has changed; True if so. Raises ConfigError, and goes on with what
        is known, when they cannot be used.
        """
        stamps = self._stamp()
        if stamps == self._stamps:
            return False
        self._stamps = stamps
        self._newest = _server_context(self._files)
        return True

    def _choose(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        del name, context
        connection.context = self._newest

    def _stamp(self) -> list[tuple[int, int, int] | None]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._files.cert, self._files.key, self._files.client_ca):
            try:
                now = path.stat() if path is not None else None
            except OSError:
                now = None
            stamps.append(now and (now.st_mtime_ns, now.st_size, now.st_ino))
        return stamps


def client_files(tls: Any) -> ClientFiles | None:
    """What `connect(tls=...)` means; None: no TLS.

    Args:    tls: None or False; True for the authorities of the system; a path of a PEM file of
             authorities; a mapping of ca, cert, key, server_name.
    Raises:  ConfigError naming what is wrong.
    """
    if tls is None or tls is False:
        return None
    if tls is True:
        return ClientFiles()
    if isinstance(tls, ClientFiles):
        return tls
    if isinstance(tls, str | Path):
        return ClientFiles(ca=str(tls))
    known = {field.name for field in fields(ClientFiles)}
    if not isinstance(tls, Mapping):
        raise ConfigError(
            f"tls is {tls!r}; give True, a path of a PEM file of authorities, or a dict of"
            f" {', '.join(sorted(known))}"
        )
    for key, value in tls.items():
        if key not in known:
            raise ConfigError(f"tls holds {key!r}; give some of {', '.join(sorted(known))}")
        if value is not None and not isinstance(value, str | Path):
            raise ConfigError(f"tls {key} is {value!r}; give a path or a name")
    files = ClientFiles(**{k: None if v is None else str(v) for k, v in tls.items()})
    if files.key is not None and files.cert is None:
        raise ConfigError(f"tls key is {files.key!r} without cert; give both")
    return files


def _server_context(files: ServerFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _OLDEST
    _identify(context, str(files.cert), str(files.key), "tls_cert")
    if files.client_ca is not None:
        _trust(context, str(files.client_ca), "tls_client_ca")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _identify(context: ssl.SSLContext, cert: str, key: str, what: str) -> None:
    for path in (cert, key):
        _readable(path, what)
    try:
        # A key that asks for a password would stop a server at its start.
        context.load_cert_chain(cert, key, password=lambda: b"")
    except (ssl.SSLError, ValueError, OSError) as error:
        raise ConfigError(
            f"{what}: {cert} and {key} are no certificate with its key in PEM form, without a"
            f" password ({error}); give both files"
        ) from None


def _trust(context: ssl.SSLContext, path: str, what: str) -> None:
    _readable(path, what)
    try:
        context.load_verify_locations(path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(f"{what}: {path} holds no certificates in PEM form ({error})") from None


def _readable(path: str, what: str) -> None:
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"cannot read {what} {path}: {error.strerror}; give a file that this user may read"
        ) from None
