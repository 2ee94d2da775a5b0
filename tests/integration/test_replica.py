"""Goal: a replica has what the servers that it follows have, bit for bit, whatever happens to
either; it answers for what has not arrived, or says that it cannot; and it changes nothing.

Method: real processes on loopback that are trained, stopped, killed and started again; a replica
whose copy is held back by a file.
"""

import itertools
import json
import signal
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trustme
from support.clients import urls_of
from support.replicas import (
    assert_follows,
    catch_up,
    contents,
    held,
    replica,
    saving_often,
    wait_for,
)
from support.server import ServerProcess, run_to_end
from support.training import Program

import hybridps as hps
from hybridps.rpc.connection import Connection
from hybridps.security.rights import Right
from hybridps.security.tokens import create
from hybridps.verbs import VERBS

# Who reads from what is told by nesting.
# ruff: noqa: SIM117

DIM = 4
SPEC = hps.TableSpec("item", DIM, hps.Adagrad(0.5), hps.Normal(std=0.1), seed=3)
KEYS = np.arange(500, dtype=np.uint64)


def rows(value: float, n: int = len(KEYS)) -> Any:
    return np.full((n, DIM), value, np.float32)


def test_a_replica_follows_training_bit_for_bit(tmp_path: Path) -> None:
    """Rows leave DRAM on both sides; rows are removed, and made again."""
    with ServerProcess(tmp_path / "a", dram="8MiB") as server, hps.connect(server.url) as ps:
        program = Program(ps)
        for _ in range(20):
            program.step()
        with replica(tmp_path / "b", server.url, dram="8MiB") as copy:
            with hps.connect(copy.url) as read:
                for _ in range(60):
                    program.step()
                assert_follows(ps, read)
                assert (read.staleness() < 60, ps.staleness()) == (True, 0.0)
                mine, theirs = read.stats(), ps.stats()
                assert (mine["role"], theirs["role"], theirs["staleness_ms"]) == (1, 0, 0)
                assert mine["followed_rows"] > mine["keys"] > 0
                # Values alone: a row of Adam has three times as much.
                bytes_of = mine["bytes_updated"] / mine["followed_rows"]
                assert bytes_of < theirs["bytes_updated"] / theirs["probes"] + 4 * 64
                text = copy.http("/metrics")[1]
                assert "hybridps_store_role 1" in text
                assert "hybridps_store_staleness_ms" in text
                assert server.url in copy.http("/")[1]
            assert copy.stop() == 0


def test_tables_that_come_go_and_change_are_followed(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "a") as server, replica(tmp_path / "b", server.url) as copy:
        with hps.connect(server.url) as ps, hps.connect(copy.url) as read:
            assert read.tables() == []
            table = ps.create_table(SPEC)
            table.assign(KEYS, rows(1))
            assert_follows(ps, read)
            table.set_learning_rate(0.125)
            wait_for(
                lambda: read.table("item").spec.optimizer.learning_rate == 0.125, "the new rate"
            )
            before = read.table("item")
            ps.drop_table("item")
            other = hps.TableSpec("item", 8, hps.SGD(0.5), hps.Zeros())
            ps.create_table(other).assign([5], np.ones((1, 8), np.float32))
            assert_follows(ps, read)
            with pytest.raises(hps.TableNotFoundError):
                before.lookup([1])
            ps.drop_table("item")
            assert_follows(ps, read)
            with pytest.raises(hps.TableNotFoundError):
                read.table("item")


def test_a_replica_of_some_tables(tmp_path: Path) -> None:
    """One of them comes later."""
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        for name in ("one", "two"):
            table = ps.create_table(hps.TableSpec(name, DIM, hps.SGD(0.5)))
            table.assign(KEYS, rows(1))
        arguments = ("--tables", "one,three")
        with replica(tmp_path / "b", server.url, *arguments) as copy:
            with hps.connect(copy.url) as read:
                catch_up(read)
                assert read.tables() == ["one"]
                third = ps.create_table(hps.TableSpec("three", DIM, hps.SGD(0.5)))
                third.assign(KEYS, rows(3))
                catch_up(read)
                assert read.tables() == ["one", "three"]
                assert contents(read, "three") == contents(ps, "three")


def test_every_verb_that_changes_something_is_refused(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "a") as server, replica(tmp_path / "b", server.url) as copy:
        with hps.connect(server.url) as ps, hps.connect(copy.url) as read:
            ps.create_table(SPEC).assign(KEYS, rows(1))
            assert_follows(ps, read)
            table = read.table("item")
            refused = {
                "lookup_or_insert": lambda: table.lookup_or_insert([1]),
                "apply_gradients": lambda: table.apply_gradients([1], rows(1, 1)),
                "assign": lambda: table.assign([1], rows(1, 1)),
                "remove": lambda: table.remove([1]),
                "scatter": lambda: table.scatter_add([1], rows(1, 1)),
                "create_table": lambda: read.create_table(SPEC),
                "drop_table": lambda: read.drop_table("item"),
                "set_learning_rate": lambda: table.set_learning_rate(0.5),
                "alter": lambda: table.alter(dram="2MiB"),
                "flush": read.flush,
                "scrub": lambda: list(read.scrub()),
            }
            for verb, call in refused.items():
                with pytest.raises(hps.ReadOnlyError, match=server.url):
                    call()
                assert table.lookup([1]).tolist() == rows(1, 1).tolist(), verb
            big = np.arange(200_000, dtype=np.uint64)
            with pytest.raises(hps.ReadOnlyError):  # In parts.
                table.assign(big, np.ones((len(big), DIM), np.float32))
            table.prefetch([1]) if hasattr(table, "prefetch") else read.prefetch({"item": [1]})
            assert len(table) == len(KEYS)
            assert table.lookup(KEYS, pool="sum", offsets=[0]).tolist() == rows(500, 1).tolist()
            assert_follows(ps, read)


def test_a_verb_is_refused_by_its_right_alone() -> None:
    """So one that is added later is too."""
    of_replica = SimpleNamespace(_host=SimpleNamespace(replica=SimpleNamespace(url="hps://a:1")))
    of_primary = SimpleNamespace(_host=SimpleNamespace(replica=None))
    for name, kind in VERBS.items():
        refused: Any = Connection._read_only(of_replica, name)  # type: ignore[arg-type]
        assert (refused is None) == (kind.RIGHT is Right.READ), name
        assert refused is None or refused.startswith(f"ReadOnlyError: {kind.spoken()}: ")
        assert Connection._read_only(of_primary, name) is None  # type: ignore[arg-type]


def test_what_has_not_arrived_is_passed_on(tmp_path: Path) -> None:
    """No page of the copy has come: rows come one by one as they are asked for, and nothing is
    taken for absent that is not.
    """
    environ, gate = held(tmp_path / "held")
    server = ServerProcess(tmp_path / "a")
    with server, hps.connect(server.url) as ps:
        table = ps.create_table(SPEC)
        table.assign(KEYS, np.repeat(KEYS.astype(np.float32)[:, None], DIM, 1))
        expected = contents(ps, "item")
        copy = replica(tmp_path / "b", server.url, **environ)
        with copy, hps.connect(copy.url) as read:
            mine = read.table("item")
            assert mine.spec == table.spec
            asked = np.array([7, 10**6, 8, 7], np.uint64)
            got, found = mine.lookup(asked, return_found=True)
            assert found.tolist() == [True, False, True, True]
            assert got[:, 0].tolist() == [7, 0, 8, 7]
            assert mine.lookup([1, 2, 3], pool="sum", offsets=[0, 1])[:, 0].tolist() == [1, 5]
            assert (len(mine), len(np.concatenate(list(mine.keys())))) == (500, 500)
            wide = mine.lookup(np.arange(40_000, dtype=np.uint64))
            assert (wide[:500, 0] == KEYS).all()
            assert not wide[500:].any()
            assert read.stats()["followed_rows"] == 0, "the copy has begun"
            # What was brought so is what is told later, and what was removed goes.
            table.remove([7])
            table.assign([8], rows(-8, 1))
            gate.touch()
            assert_follows(ps, read)
            assert contents(read, "item").keys() == expected.keys() - {7}
            assert mine.lookup([8])[0, 0] == -8


def test_without_the_followed_nothing_is_taken_for_zeros(tmp_path: Path) -> None:
    environ, _ = held(tmp_path / "held")
    server = ServerProcess(tmp_path / "a")
    with server, hps.connect(server.url) as ps:
        ps.create_table(SPEC).assign(KEYS, rows(1))
        copy = replica(tmp_path / "b", server.url, **environ)
        with copy, hps.connect(copy.url) as read:
            mine = read.table("item")
            mine.lookup([1, 2])
            server.process.kill()
            server.process.wait()
            assert mine.lookup([1, 2]).tolist() == rows(1, 2).tolist(), "these had arrived"
            for call in (
                lambda: mine.lookup([1, 3]),
                lambda: mine.lookup([10**9]),
                lambda: mine.lookup([[3]], pool="sum"),
                lambda: len(mine),
                lambda: list(mine.keys()),
            ):
                with pytest.raises(hps.UnavailableError, match="not arrived"):
                    call()
            assert read.staleness() > 0


def test_a_replica_starts_and_serves_while_the_followed_is_away(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "a")
    with server, hps.connect(server.url) as ps:
        ps.create_table(SPEC).assign(KEYS, rows(1))
        expected = contents(ps, "item")
        with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
            assert_follows(ps, read)
            assert copy.stop() == 0
    url = server.url
    with replica(tmp_path / "b", url) as copy, hps.connect(copy.url) as read:
        assert contents(read, "item") == expected
        assert read.table("item").spec == SPEC
        behind = read.staleness()
        wait_for(lambda: read.staleness() > behind, "staleness grows")
        with pytest.raises(hps.StaleError, match="behind"):
            read.table("item").lookup([1], max_staleness=behind)
        assert read.table("item").lookup([1], max_staleness=1e6).tolist() == rows(1, 1).tolist()
        with pytest.raises(hps.BadInputError, match="max_staleness"):
            read.table("item").lookup([1], max_staleness=-1)
    # One that never met anybody knows nothing, and says so.
    with replica(tmp_path / "c", url) as copy, hps.connect(copy.url) as read:
        assert read.staleness() == float("inf")
        for call in (read.tables, lambda: read.table("item")):
            with pytest.raises(hps.UnavailableError, match="has not met"):
                call()


def test_a_replica_that_is_killed_goes_on(tmp_path: Path) -> None:
    """At any moment; what it had taken over and not written is told again. Keys are changed once
    and never again, so that one that is missed stays missed.
    """
    random, often = np.random.default_rng(8), saving_often(tmp_path / "often")
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        once, is_over = ps.create_table(SPEC), threading.Event()

        def train() -> None:
            for step in itertools.count():
                fresh = np.uint64(100 * step) + np.arange(1000, 1100, dtype=np.uint64)
                once.assign(fresh, rows(step, 100))
                once.remove(fresh[:10] - np.uint64(1000))
                if is_over.wait(0.01):
                    return

        trainer = threading.Thread(target=train)
        trainer.start()
        try:
            for _ in range(6):
                copy = replica(tmp_path / "b", server.url, **often)
                time.sleep(float(random.random()) * 2)
                copy.process.kill()
                copy.process.wait()
                copy.close()
        finally:
            is_over.set()
            trainer.join()
        with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
            assert_follows(ps, read)


def test_a_primary_that_is_killed_is_followed_again(tmp_path: Path) -> None:
    """What a crash took from it, rows that reads alone had made, goes from the replica too."""
    listen = ("--listen", f"127.0.0.1:{free_port()}")
    server = ServerProcess(tmp_path / "a", *listen)
    with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
        for round_ in range(2):
            with server, hps.connect(server.url) as ps:
                table = ps.create_table(SPEC)
                table.assign(KEYS, rows(round_))
                table.remove(KEYS[:50])
                table.lookup_or_insert(KEYS + np.uint64(1000 + 1000 * round_))
                assert_follows(ps, read)
                server.process.kill()
                server.process.wait()
            assert len(read.table("item")) >= 450, "it serves what it has"
            server = ServerProcess(tmp_path / "a", *listen)
        with server, hps.connect(server.url) as ps:
            assert_follows(ps, read)
            # In place: who had the table has it still.
            ps.table("item").assign([1], rows(9, 1))
            assert_follows(ps, read)


def test_servers_that_share_the_keys_and_replicas_of_replicas(tmp_path: Path) -> None:
    servers = [ServerProcess(tmp_path / f"a{n}", "--shard", f"{n}/3") for n in range(3)]
    try:
        url = urls_of(servers)
        with hps.connect(url) as ps:
            program = Program(ps, ids=2000, batch=200)
            with replica(tmp_path / "b", url) as copy, replica(tmp_path / "c", copy.url) as last:
                with hps.connect(copy.url) as read, hps.connect(last.url) as end:
                    for _ in range(20):
                        program.step()
                    assert_follows(ps, read)
                    assert_follows(read, end)
                    ps.drop_table("word")
                    assert_follows(ps, read)
                    assert_follows(read, end)
    finally:
        for server in servers:
            server.close()


def test_directories_are_not_mixed_up(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        ps.create_table(SPEC).assign(KEYS, rows(1))
        with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
            assert_follows(ps, read)
        ends = ("--listen", "127.0.0.1:0", "--ops", "off", "--nvme", "256MiB", "--dram", "16MiB")
        done = run_to_end("--data", str(tmp_path / "b"), *ends)
        assert (done.returncode, "is a replica's" in done.stderr) == (1, True)
        with ServerProcess(tmp_path / "d") as other, hps.connect(other.url) as own:
            own.create_table(SPEC)
        done = run_to_end("--data", str(tmp_path / "d"), "--follow", server.url, *ends)
        assert (done.returncode, "no replica has made" in done.stderr) == (1, True)
        # Of other servers, or other tables, it begins anew.
        with ServerProcess(tmp_path / "e") as other, hps.connect(other.url) as own:
            own.create_table(SPEC).assign([1], rows(2, 1))
            with replica(tmp_path / "b", other.url) as copy, hps.connect(copy.url) as read:
                assert_follows(own, read)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--follow", "local:x"), "give the URL of servers"),
        (("--follow", "nonsense"), "url is 'nonsense'"),
        (("--follow", "hps://a:1", "--shard", "0/2"), "leave it"),
        (("--tables", "a,b"), "without follow"),
        (("--follow", "hps://a:1", "--tables", "a,,b"), "give names"),
        (("--follow", "hps://a:1", "--follow-token-file", "/absent"), "cannot be read"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    done = run_to_end("--data", str(tmp_path / "d"), *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"version": 1}', '{"version": 1, "posi'])
def test_a_file_of_a_replica_that_is_damaged_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "d").mkdir()
    with ServerProcess(tmp_path / "d"):
        pass
    (tmp_path / "d" / "replica.json").write_text(text)
    done = run_to_end("--data", str(tmp_path / "d"), "--follow", "hps://127.0.0.1:1", "--listen",
                      "127.0.0.1:0", "--ops", "off", "--nvme", "256MiB")  # fmt: skip
    assert (done.returncode, "replica.json" in done.stderr) == (1, True), done.stderr


def test_a_position_that_is_no_longer_one_begins_anew(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        ps.create_table(SPEC).assign(KEYS, rows(1))
        for position in ("nonsense", None):
            with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
                assert_follows(ps, read)
            path = tmp_path / "b" / "replica.json"
            told = json.loads(path.read_text()) | {"position": position}
            path.write_text(json.dumps(told))
            ps.table("item").remove(KEYS[:5])
        with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
            assert_follows(ps, read)


def test_a_followed_one_that_hangs_makes_no_read_late(tmp_path: Path) -> None:
    with ServerProcess(tmp_path / "a") as server, hps.connect(server.url) as ps:
        ps.create_table(SPEC).assign(KEYS, rows(1))
        with replica(tmp_path / "b", server.url) as copy, hps.connect(copy.url) as read:
            assert_follows(ps, read)
            server.process.send_signal(signal.SIGSTOP)
            try:
                table = read.table("item")
                for _ in range(100):
                    assert table.lookup(KEYS, timeout=5.0).tolist() == rows(1).tolist()
            finally:
                server.process.send_signal(signal.SIGCONT)
            ps.table("item").assign(KEYS, rows(2))
            assert_follows(ps, read)


def test_a_replica_shows_a_token_and_looks_at_a_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    ca, cert, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    own = authority.issue_cert("127.0.0.1")
    own.cert_chain_pems[0].write_to_path(cert)
    own.private_key_pem.write_to_path(key)
    made = {right: create(right.word, right, ("*",)) for right in (Right.READ, Right.ADMIN)}
    tokens = tmp_path / "tokens.toml"
    tokens.write_text("\n".join(entry for _, entry in made.values()))
    reading, ruling = (made[right][0] for right in (Right.READ, Right.ADMIN))
    shown = tmp_path / "shown"
    shown.write_text(reading + "\n")
    files = ("--token-file", str(tokens), "--tls-cert", str(cert), "--tls-key", str(key))
    with ServerProcess(tmp_path / "a", *files) as server:
        with hps.connect(server.url, token=ruling, tls=str(ca)) as ps:
            ps.create_table(SPEC).assign(KEYS, rows(1))
            arguments = ("--follow-token-file", str(shown), "--follow-ca", str(ca))
            with replica(tmp_path / "b", server.url, *arguments) as copy:
                with hps.connect(copy.url) as read:
                    assert_follows(ps, read)
                assert reading not in copy.stderr() + copy.http("/")[1]
            # Without either it follows nobody, and says why.
            with replica(tmp_path / "c", server.url, "--follow-ca", str(ca)) as copy:
                wait_for(lambda: "AuthError" in copy.stderr() or "token" in copy.stderr(), "why")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]
