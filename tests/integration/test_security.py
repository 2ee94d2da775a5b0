"""Goal: who has no right gets nothing, whatever it speaks; who has it gets all, encrypted or not.
Method: real servers with a token file and certificates, our clients of both kinds, a stock pycapnp
client over TLS, OpenSSL's own program; the server's log is read for tokens that leaked."""

import asyncio
import pickle
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import capnp
import numpy as np
import pytest
import trustme
from support.server import ServerProcess
from support.stock import stock_session

import hybridps as hps
from hybridps.security.rights import Right
from hybridps.security.tls import ClientFiles
from hybridps.security.tokens import create

SPEC = hps.TableSpec("item", 4, optimizer=hps.SGD(learning_rate=1.0), initializer=hps.Zeros())
KEYS = np.arange(10, dtype=np.uint64)
ONES = np.ones((10, 4), np.float32)


class Issued:
    """A token file, and the tokens that are in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "tokens.toml"
        self.tokens: dict[str, str] = {}
        self.entries: dict[str, str] = {}

    def add(self, name: str, right: Right, *tables: str) -> str:
        self.tokens[name], self.entries[name] = create(name, right, tables or ("*",))
        self.write()
        return self.tokens[name]

    def write(self) -> None:
        """All at once, as an operator should."""
        made = self.path.with_suffix(".new")
        made.write_text("\n".join(self.entries.values()))
        made.rename(self.path)


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    issued = Issued(tmp_path)
    issued.add("reader", Right.READ)
    issued.add("trainer", Right.TRAIN, "item", "user_*")
    issued.add("operator", Right.ADMIN)
    return issued


@pytest.fixture
def server(tmp_path: Path, issued: Issued) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "d", "--token-file", str(issued.path)) as server:
        yield server
        told = server.stderr()
        assert not [name for name, token in issued.tokens.items() if token in told]


def eventually(attempt: Callable[[], Any], error: type[Exception]) -> None:
    """Calls until that error comes; the file is looked at every two seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            attempt()
        except error:
            return
        time.sleep(0.1)
    raise AssertionError(f"no {error}")


def test_nobody_gets_in_without_a_token(server: ServerProcess) -> None:
    for token, told in ((None, "none was given"), ("guess", "does not know the token")):
        began = time.monotonic()
        with pytest.raises(hps.AuthError, match=told):
            hps.connect(server.url, token=token, timeout=30)
        assert time.monotonic() - began < 20, "refused at once, not tried again"

        async def attempt(token: str | None = token) -> None:
            await hps.aio.connect(server.url, token=token, timeout=30)

        with pytest.raises(hps.AuthError, match=told):
            asyncio.run(attempt())


def test_a_right_is_held_to_in_every_verb(server: ServerProcess, issued: Issued) -> None:
    with (
        hps.connect(server.url, token=issued.tokens["trainer"]) as trainer,
        hps.connect(server.url, token=issued.tokens["reader"]) as reader,
        hps.connect(server.url, token=issued.tokens["operator"]) as operator,
    ):
        item = trainer.create_table(SPEC)
        item.apply_gradients(KEYS, ONES)
        read = reader.table("item")
        assert (read.lookup(KEYS) == -1).all()
        assert (len(read), read.stats()["keys"], reader.tables()) == (10, 10, ["item"])
        reader.prefetch({"item": KEYS})
        for refused in (
            lambda: read.lookup_or_insert(KEYS),
            lambda: read.apply_gradients(KEYS, ONES),
            lambda: read.assign(KEYS, ONES),
            lambda: read.remove(KEYS),
            lambda: reader.create_table(SPEC),
            lambda: read.set_learning_rate(0.1),
            reader.flush,
            lambda: trainer.drop_table("item"),
            lambda: item.alter(dram="2MiB"),
        ):
            with pytest.raises(hps.AuthError, match=r"token '(reader|trainer)' is for"):
                refused()
        assert (read.lookup(KEYS) == -1).all(), "nothing changed"
        item.set_learning_rate(0.5)
        operator.drop_table("item")
        assert operator.tables() == []


def test_a_token_is_for_its_tables_alone(server: ServerProcess, issued: Issued) -> None:
    other = hps.TableSpec("other", 4, optimizer=hps.SGD(1.0), initializer=hps.Zeros())
    with (
        hps.connect(server.url, token=issued.tokens["trainer"]) as trainer,
        hps.connect(server.url, token=issued.tokens["operator"]) as operator,
    ):
        trainer.create_table(SPEC)
        operator.create_table(other)
        with pytest.raises(hps.AuthError, match="for tables item, user_"):
            trainer.create_table(other)
        with pytest.raises(hps.AuthError, match="not for 'other'"):
            trainer.table("other")
        raw = _ids(operator)
        assert len(raw) == 2

    async def by_id() -> None:
        async with capnp.kj_loop():
            token = issued.tokens["trainer"]
            async with stock_session(server.address, token) as ps:
                await ps.hello(77)
                for table in range(1, 4):
                    if table == raw["item"]:
                        await ps.apply_gradients(table, [1], ONES[:1])
                        continue
                    told = "AuthError" if table == raw["other"] else "TableNotFoundError"
                    with pytest.raises(capnp.KjException, match=told):
                        await ps.lookup(table, [1], 4)
                    with pytest.raises(capnp.KjException, match=told):
                        await ps.apply_gradients(table, [1], ONES[:1])

    asyncio.run(by_id())
    with hps.connect(server.url, token=issued.tokens["operator"]) as operator:
        assert len(operator.table("other")) == 0
        assert len(operator.table("item")) == 1


def _ids(ps: Any) -> dict[str, int]:
    return {name: n for n, name in enumerate(("item", "other"), 1) if name in ps}


def test_a_token_is_replaced_and_revoked_while_connections_are_open(
    server: ServerProcess, issued: Issued
) -> None:
    with hps.connect(server.url, token=issued.tokens["operator"]) as ps:
        ps.create_table(SPEC)
    with hps.connect(server.url, token=issued.tokens["reader"]) as old:
        item = old.table("item")
        newer, entry = create("reader", Right.READ)
        issued.entries["newer"] = entry
        issued.write()

        def is_let_in() -> None:
            with hps.connect(server.url, token=newer) as new:
                new.table("item").lookup(KEYS)
                raise EOFError

        eventually(lambda: _ignoring(hps.AuthError, is_let_in), EOFError)
        item.lookup(KEYS)
        del issued.entries["reader"]
        issued.write()
        eventually(lambda: item.lookup(KEYS), hps.AuthError)
        with pytest.raises(hps.AuthError, match="'reader' was revoked"):
            item.lookup(KEYS)
        with pytest.raises(hps.AuthError, match="does not know"):
            hps.connect(server.url, token=issued.tokens["reader"])
        issued.path.write_text("[[token]]\nname = 3\n")
        time.sleep(3)
        with hps.connect(server.url, token=newer) as new:
            new.table("item").lookup(KEYS)
    assert any(e["event"].startswith("not taken") for e in server.events())


def _ignoring(error: type[Exception], attempt: Callable[[], None]) -> None:
    try:
        attempt()
    except error:
        return


def test_what_is_no_look_leaves_an_audit_line(server: ServerProcess, issued: Issued) -> None:
    with hps.connect(server.url, token=issued.tokens["operator"]) as operator:
        for n in range(30):
            operator.create_table(hps.TableSpec(f"t{n}", 4, optimizer=hps.SGD(1.0)))
        operator.drop_table("t0")
    with (
        hps.connect(server.url, token=issued.tokens["reader"]) as reader,
        pytest.raises(hps.AuthError),
    ):
        reader.drop_table("t1")
    lines = [e for e in server.events() if e["event"] == "audit"]
    made = [e["table"] for e in lines if e["verb"] == "createTable"]
    assert made == [f"t{n}" for n in range(30)], "no line is left out"
    dropped = [(e["token"], e["table"], e["outcome"]) for e in lines if e["verb"] == "dropTable"]
    assert dropped == [("operator", "t0", "ok"), ("reader", "t1", "AuthError")]
    assert all(e["peer"].startswith("127.0.0.1:") for e in lines)


class Certificates:
    """An authority, and files that it has issued."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.path = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.path))
        self.renew()

    def renew(self) -> None:
        """A new certificate of the server."""
        self.cert, self.key = self.issue("server", "127.0.0.1", "localhost")

    def issue(self, name: str, *hosts: str) -> tuple[str, str]:
        made = self.ca.issue_cert(*hosts)
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        for path, content in ((key, made.private_key_pem.bytes()), (cert, chain)):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.rename(path)
        return str(cert), str(key)

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--tls-cert", self.cert, "--tls-key", self.key)


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture(params=["uvloop", "asyncio"])
def encrypted(
    tmp_path: Path, certificates: Certificates, request: pytest.FixtureRequest
) -> Iterator[ServerProcess]:
    flags = (*certificates.flags, "--loop", request.param, "--dram", "64MiB")
    with ServerProcess(tmp_path / "d", *flags) as server:
        yield server


def test_rows_of_any_size_go_both_ways(
    encrypted: ServerProcess, certificates: Certificates
) -> None:
    spec = hps.TableSpec("wide", 64, optimizer=hps.SGD(1.0), initializer=hps.Zeros())
    rows = np.random.default_rng(0).normal(size=(40_000, 64)).astype(np.float32)
    keys = np.arange(40_000, dtype=np.uint64)
    with hps.connect(encrypted.url, tls=certificates.path) as ps:
        wide = ps.create_table(spec)
        wide.assign(keys, rows)
        for count in (0, 1, 1000, 40_000):
            assert (wide.lookup(keys[:count]) == rows[:count]).all()
        errors: list[BaseException] = []

        def work(n: int) -> None:
            try:
                for _ in range(10):
                    part = keys[n * 1000 : (n + 3) * 1000]
                    assert (wide.lookup(part) == rows[n * 1000 : (n + 3) * 1000]).all()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not errors
        copied = pickle.loads(pickle.dumps(ps))  # noqa: S301 - our own
        assert (copied.table("wide").lookup(keys[:9]) == rows[:9]).all()
        copied.close()

    async def by_aio() -> None:
        async with hps.aio.connect(encrypted.url, tls={"ca": certificates.path}) as ps:
            wide = ps.table("wide")
            many = await asyncio.gather(*(wide.lookup(keys[n::7]) for n in range(7)))
            for n, part in enumerate(many):
                assert (part == rows[n::7]).all()

    asyncio.run(by_aio())


def test_a_stock_client_speaks_over_tls(
    encrypted: ServerProcess, certificates: Certificates
) -> None:
    async def speak() -> None:
        context = ClientFiles(ca=str(certificates.path)).context()
        async with (
            capnp.kj_loop(),
            stock_session(encrypted.address, ssl=context, server_hostname="localhost") as ps,
        ):
            await ps.hello(5)
            table = await ps.create_table("t", 64)
            await ps.apply_gradients(table, range(20_000), np.ones((20_000, 64), np.float32))
            assert (await ps.lookup(table, range(20_000), 64) == -1).all()

    asyncio.run(speak())


def test_openssl_itself_finds_nothing_wrong(
    encrypted: ServerProcess, certificates: Certificates
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    where = f"{encrypted.address[0]}:{encrypted.address[1]}"
    ask = [openssl, "s_client", "-connect", where, "-CAfile", str(certificates.path)]
    for version, is_spoken in (("-tls1_3", True), ("-tls1_2", True), ("-tls1_1", False)):
        told = subprocess.run(
            [*ask, version, "-verify_return_error"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ("Verification: OK" in told.stdout and told.returncode == 0) is is_spoken


def test_those_who_speak_no_tls_disturb_nobody(
    encrypted: ServerProcess, certificates: Certificates
) -> None:
    with pytest.raises(hps.UnavailableError, match="if it speaks TLS"):
        hps.connect(encrypted.url, timeout=2)
    with pytest.raises(hps.AuthError, match="certificate that is not trusted"):
        hps.connect(encrypted.url, tls=True, timeout=30)
    rng = np.random.default_rng(1)
    silent = [socket.create_connection(encrypted.address) for _ in range(20)]
    for _ in range(50):
        with socket.create_connection(encrypted.address) as sock:
            sock.sendall(b"\x16\x03\x01" + rng.bytes(int(rng.integers(0, 600))))
    with hps.connect(encrypted.url, tls=certificates.path) as ps:
        assert ps.tables() == []
    for sock in silent:
        sock.close()
    assert encrypted.process.poll() is None


def test_a_client_that_asks_for_tls_of_a_plain_server_is_told(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    with ServerProcess(tmp_path / "d") as server:
        began = time.monotonic()
        with pytest.raises((hps.AuthError, hps.UnavailableError)):
            hps.connect(server.url, tls=certificates.path, timeout=3)
        assert time.monotonic() - began < 30
        with hps.connect(server.url) as ps:
            assert ps.tables() == []


def test_only_clients_of_the_authority_get_in(
    tmp_path: Path, certificates: Certificates, issued: Issued
) -> None:
    strangers = tmp_path / "strangers"
    strangers.mkdir()
    flags = (*certificates.flags, "--tls-client-ca", str(certificates.path))
    with ServerProcess(tmp_path / "d", *flags, "--token-file", str(issued.path)) as server:
        cert, key = certificates.issue("client", "me")
        known = {"ca": certificates.path, "cert": cert, "key": key}
        with hps.connect(server.url, tls=known, token=issued.tokens["operator"]) as ps:
            ps.create_table(SPEC)
        with pytest.raises(hps.AuthError, match="none was given"):
            hps.connect(server.url, tls=known)
        cert, key = Certificates(strangers).issue("client", "me")
        for refused in ({}, {"cert": cert, "key": key}):
            tls = {"ca": certificates.path, **refused}
            with pytest.raises((hps.AuthError, hps.UnavailableError)):
                hps.connect(server.url, tls=tls, token=issued.tokens["operator"], timeout=3)


def test_a_certificate_is_replaced_without_a_pause(
    tmp_path: Path, certificates: Certificates
) -> None:
    with (
        ServerProcess(tmp_path / "d", *certificates.flags) as server,
        hps.connect(server.url, tls=certificates.path) as old,
    ):
        # Another authority, whose file stands in the place of the first.
        Certificates(tmp_path)

        def is_new() -> None:
            hps.connect(server.url, tls=certificates.path, timeout=5).close()
            raise EOFError

        eventually(lambda: _ignoring(hps.AuthError, is_new), EOFError)
        assert old.tables() == [], "an open connection keeps its own"


def test_beyond_loopback_with_both_is_no_risk_to_warn_of(
    tmp_path: Path, certificates: Certificates, issued: Issued
) -> None:
    flags = (*certificates.flags, "--token-file", str(issued.path), "--listen", "0.0.0.0:0")
    with ServerProcess(tmp_path / "d", *flags) as server:
        assert not [e for e in server.events() if "without encryption" in e["event"]]
