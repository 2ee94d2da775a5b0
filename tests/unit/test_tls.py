"""Goal: TLS says who is wrong, and goes with its files. Method: handshakes in memory between the
two contexts, with certificates of authorities made by the test."""

import os
import ssl
from pathlib import Path

import pytest
import trustme

from hybridps.errors import ConfigError
from hybridps.security.tls import ClientFiles, ServerContext, ServerFiles, client_files


class Authority:
    """An authority whose certificate is in a file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.ca = trustme.CA()
        self.path = folder / f"{name}.ca.pem"
        self.ca.cert_pem.write_to_path(str(self.path))

    def issue(self, folder: Path, name: str, *hosts: str) -> tuple[Path, Path]:
        """Certificate and key of hosts, each in a file."""
        made = self.ca.issue_cert(*hosts)
        cert, key = folder / f"{name}.cert.pem", folder / f"{name}.key.pem"
        made.private_key_pem.write_to_path(str(key))
        with cert.open("wb") as file:
            file.writelines(blob.bytes() for blob in made.cert_chain_pems)
        return cert, key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> ssl.SSLObject:
    """The client's end. Raises what either end raises."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(back, there, server_hostname=host),
        server.wrap_bio(there, back, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    # With TLS 1.3 the client is done before the server has seen its certificate.
    ends[1].write(b"x")
    assert ends[0].read(1) == b"x"
    return ends[0]


def serial(connection: ssl.SSLObject) -> str:
    return str((connection.getpeercert() or {})["serialNumber"])


def test_a_client_trusts_its_authority_and_the_name_it_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    server = ServerContext(ServerFiles(*authority.issue(tmp_path, "s", "ps.example")))
    client = ClientFiles(ca=str(authority.path)).context()
    assert handshake(server.context, client, "ps.example").version() == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"ps\.other"):
        handshake(server.context, client, "ps.other")
    stranger = ClientFiles(ca=str(Authority(tmp_path, "theirs").path)).context()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server.context, stranger, "ps.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server.context, ClientFiles().context(), "ps.example")


def test_a_new_certificate_is_shown_to_those_who_come_later(
    tmp_path: Path, authority: Authority
) -> None:
    server = ServerContext(ServerFiles(*authority.issue(tmp_path, "s", "ps.example")))
    client = ClientFiles(ca=str(authority.path)).context()
    first = serial(handshake(server.context, client, "ps.example"))
    assert not server.refresh()
    cert, _ = authority.issue(tmp_path, "s", "ps.example")
    os.utime(cert, (1, 1))
    assert server.refresh()
    assert not server.refresh()
    second = serial(handshake(server.context, client, "ps.example"))
    assert first != second
    cert.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"s\.cert\.pem"):
        server.refresh()
    assert serial(handshake(server.context, client, "ps.example")) == second


def test_with_client_ca_only_its_clients_get_in_and_it_may_be_replaced(
    tmp_path: Path, authority: Authority
) -> None:
    ours, theirs = Authority(tmp_path, "clients"), Authority(tmp_path, "theirs")
    known = tmp_path / "known.pem"
    known.write_bytes(ours.path.read_bytes())
    server = ServerContext(ServerFiles(*authority.issue(tmp_path, "s", "h"), known))

    def client(who: Authority | None) -> ssl.SSLContext:
        cert, key = who.issue(tmp_path, "c", "me") if who else (None, None)
        return ClientFiles(str(authority.path), cert and str(cert), key and str(key)).context()

    handshake(server.context, client(ours), "h")
    for refused in (None, theirs):
        with pytest.raises(ssl.SSLError):
            handshake(server.context, client(refused), "h")
    known.write_bytes(theirs.path.read_bytes())
    assert server.refresh()
    handshake(server.context, client(theirs), "h")
    with pytest.raises(ssl.SSLError):
        handshake(server.context, client(ours), "h")


def test_old_protocols_are_not_spoken(tmp_path: Path, authority: Authority) -> None:
    server = ServerContext(ServerFiles(*authority.issue(tmp_path, "s", "h")))
    client = ssl.create_default_context(cafile=str(authority.path))
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        handshake(server.context, client, "h")


def test_bad_files_are_refused_by_name(tmp_path: Path, authority: Authority) -> None:
    cert, key = authority.issue(tmp_path, "s", "h")
    other_key = authority.issue(tmp_path, "other", "h")[1]
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    missing = tmp_path / "missing.pem"
    for files, told in (
        (ServerFiles(missing, key), "cannot read tls_cert .*missing"),
        (ServerFiles(cert, other_key), "other.key.pem are no certificate with its key"),
        (ServerFiles(empty, key), "empty.pem and .* are no certificate"),
        (ServerFiles(cert, key, empty), "tls_client_ca: .*empty.pem holds no certificates"),
        (ServerFiles(cert, key, missing), "cannot read tls_client_ca"),
    ):
        with pytest.raises(ConfigError, match=told):
            ServerContext(files)
    with pytest.raises(ConfigError, match=r"tls ca: .*empty"):
        ClientFiles(ca=str(empty)).context()
    with pytest.raises(ConfigError, match="cannot read tls cert"):
        ClientFiles(cert=str(missing)).context()


def test_what_connect_takes() -> None:
    assert client_files(None) is None
    assert client_files(False) is None
    assert client_files(True) == ClientFiles()
    assert client_files("ca.pem") == client_files(Path("ca.pem")) == ClientFiles(ca="ca.pem")
    asked = {"ca": Path("a"), "cert": "c", "key": None, "server_name": "n"}
    assert client_files(asked) == ClientFiles("a", "c", None, "n")
    for bad, told in (
        (3, "tls is 3; give True, a path"),
        ({"certificate": "x"}, "'certificate'; give some of ca, cert"),
        ({"ca": 3}, "tls ca is 3"),
        ({"key": "k"}, "without cert"),
    ):
        with pytest.raises(ConfigError, match=told):
            client_files(bad)
