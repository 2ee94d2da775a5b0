"""Goal: workers that push together train as one process would, bit for bit; a lost one is told and
comes back; nothing is applied twice or in part, and nothing stays of who is gone.

Method: real servers, two and three workers in threads beside a store in this process that is given
the gradients of all ranks, one behind the other.
"""

import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.clients import connect, urls_of
from support.proxy import Proxy
from support.server import ServerProcess

import hybridps as hps

SPEC = hps.TableSpec("item", 4, hps.Adagrad(0.1), hps.Normal(std=0.1), seed=1)
OTHER = hps.TableSpec("user", 3, hps.Adam(0.05), hps.Normal(std=0.1), seed=2)
PLAIN = hps.TableSpec("plain", 2, hps.SGD(1.0), hps.Zeros())
ONES = np.ones((2, 2), np.float32)
IDS = 300
PATIENCE_S = 60.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path / "server") as running:
        yield running


def sync(url: str, workers: int, rank: int, kind: str = "tcp", **settings: Any) -> Any:
    settings = {"timeout": PATIENCE_S, "client_id": f"worker-{rank}"} | settings
    return connect(kind, url, mode="sync", workers=workers, rank=rank, **settings)


def all_at_once(workers: int, work: Callable[[int], Any]) -> list[Any]:
    """What each rank gives, from threads that run side by side."""
    with ThreadPoolExecutor(workers) as threads:
        return [f.result(2 * PATIENCE_S) for f in [threads.submit(work, r) for r in range(workers)]]


def batch(rank: int, step: int) -> np.ndarray:
    """Ids of a rank's step, none twice; ranks share many."""
    return np.random.default_rng([rank, step]).choice(IDS, 60, replace=False)


def gradients(rows: np.ndarray, rank: int, step: int) -> np.ndarray:
    """They depend on every bit that was read."""
    noise = np.random.default_rng([rank, step, 1]).normal(size=rows.shape)
    return np.tanh(rows) + noise.astype(np.float32)


def train(ps: Any, rank: int, steps: range, *, with_steps: bool = False) -> None:
    """Each rank reads and pushes what is its own; the second table only now and then."""
    ps.create_table(SPEC)
    ps.create_table(OTHER)
    for step in steps:
        ids = named(rank, step)
        rows = ps.lookup_or_insert(ids)
        pushed = {name: (ids[name], gradients(rows[name], rank, step)) for name in ids}
        ps.apply_gradients(pushed, step=step if with_steps else None)


def named(rank: int, step: int) -> dict[str, np.ndarray]:
    names = [name for n, name in enumerate(("item", "user")) if (step + rank + n) % 3]
    return {name: batch(rank, step) for name in names or ["user"]}


def as_one(folder: Path, workers: int, steps: int) -> dict[str, np.ndarray]:
    """The same by one process that sums in the order of ranks."""
    with hps.connect(f"local:{folder}", dram="64MiB", nvme="256MiB") as ps:
        ps.create_table(SPEC)
        ps.create_table(OTHER)
        for step in range(1, steps + 1):
            ids = [named(rank, step) for rank in range(workers)]
            rows = [ps.lookup_or_insert(of_rank) for of_rank in ids]
            pushed = {}
            for name in ("item", "user"):
                ranks = [rank for rank in range(workers) if name in ids[rank]]
                if ranks:
                    parts = [gradients(rows[r][name], r, step) for r in ranks]
                    keys = np.concatenate([ids[r][name] for r in ranks])
                    pushed[name] = (keys, np.concatenate(parts))
            ps.apply_gradients(pushed)
        return rows_of(ps)


def rows_of(ps: Any) -> dict[str, np.ndarray]:
    return ps.lookup({"item": np.arange(IDS), "user": np.arange(IDS)})


def assert_same(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name, rows in expected.items():
        assert got[name].tobytes() == rows.tobytes(), name


@pytest.mark.parametrize(
    ("workers", "shards", "kind"), [(1, 1, "tcp"), (2, 1, "tcp"), (3, 2, "tcp"), (2, 2, "tcp-aio")]
)
def test_workers_train_as_one(tmp_path: Path, workers: int, shards: int, kind: str) -> None:
    steps = 12
    with ExitStack() as held:
        servers = [
            held.enter_context(ServerProcess(tmp_path / f"d{n}", "--shard", f"{n}/{shards}"))
            for n in range(shards)
        ]

        def work(rank: int) -> dict[str, np.ndarray]:
            with sync(urls_of(servers), workers, rank, kind) as ps:
                train(ps, rank, range(1, steps + 1))
                return rows_of(ps)

        expected = as_one(tmp_path / "one", workers, steps)
        for got in all_at_once(workers, work):
            assert_same(got, expected)


def test_over_a_crash_of_the_server_every_round_is_applied_once(tmp_path: Path) -> None:
    """Killed again and again, between and within rounds; answers are lost, pushes sent again."""
    steps, made, path = 60, [0, 0], str(tmp_path / "s")
    arguments = ("--unix", path, "--listen", "off", "--durability", "process")
    server = ServerProcess(tmp_path / "d", *arguments)
    try:

        def work(rank: int) -> dict[str, np.ndarray]:
            with sync(f"hps+unix://{path}", 2, rank) as ps:
                for step in range(1, steps + 1):
                    train(ps, rank, range(step, step + 1))
                    made[rank] = step
                return rows_of(ps)

        with ThreadPoolExecutor(2) as threads:
            futures = [threads.submit(work, rank) for rank in range(2)]
            for goal in (10, 25, 40):
                while min(made) < goal and not any(f.done() for f in futures):
                    time.sleep(0.001)
                server.kill()
                server.close()
                server = ServerProcess(tmp_path / "d", *arguments)
            found = [future.result(2 * PATIENCE_S) for future in futures]
    finally:
        server.close()
    expected = as_one(tmp_path / "one", 2, steps)
    for got in found:
        assert_same(got, expected)


def test_answers_that_are_lost_are_asked_for_again(server: ServerProcess, tmp_path: Path) -> None:
    steps = 15
    with Proxy(server.address) as proxy:

        def work(rank: int) -> dict[str, np.ndarray]:
            with sync(proxy.url if rank else server.url, 2, rank) as ps:
                for step in range(1, steps + 1):
                    if rank and step % 3 == 0:
                        proxy.lose_answers(1)
                    train(ps, rank, range(step, step + 1))
                return rows_of(ps)

        expected = as_one(tmp_path / "one", 2, steps)
        for got in all_at_once(2, work):
            assert_same(got, expected)
        assert proxy.connections > steps // 3


def test_a_sigterm_while_workers_wait_is_no_loss(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    arguments = ("--unix", path, "--listen", "off")
    server = ServerProcess(tmp_path / "d", *arguments)
    try:
        with sync(f"hps+unix://{path}", 2, 0) as one, ThreadPoolExecutor(1) as threads:
            table = one.create_table(PLAIN)
            waits = threads.submit(table.apply_gradients, [1, 2], ONES)
            until_one_waits(server)
            server.send(signal.SIGTERM)
            assert server.wait() == 0
            server.close()
            server = ServerProcess(tmp_path / "d", *arguments)
            with sync(f"hps+unix://{path}", 2, 1) as two:
                two.table("plain").apply_gradients([1], ONES[:1])
                waits.result(PATIENCE_S)
                rows = two.table("plain").lookup([1, 2])
                np.testing.assert_array_equal(rows, [[-2, -2], [-1, -1]])
    finally:
        server.close()


def until_one_waits(server: ServerProcess, count: int = 1) -> None:
    """Until so many pushes wait for other workers."""
    until(lambda: gauge(server, "waiting_pushes") == count)


def inflight_bytes(server: ServerProcess) -> int:
    return gauge(server, "inflight_bytes")


def gauge(server: ServerProcess, name: str) -> int:
    _, text = server.http("/metrics")
    (line,) = [x for x in text.splitlines() if x.startswith(f"hybridps_{name} ")]
    return int(float(line.split()[1]))


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_lost_worker_is_a_deadline_and_comes_back(server: ServerProcess) -> None:
    with sync(server.url, 2, 0) as one:
        table = one.create_table(PLAIN)
        two = sync(server.url, 2, 1)
        all_at_once(2, lambda rank: (one, two)[rank].table("plain").apply_gradients([1, 2], ONES))
        two.close()
        with pytest.raises(hps.DeadlineError, match=r"0\.5 s.*2 workers.*may be lost"):
            table.apply_gradients([1, 2], ONES, timeout=0.5)
        np.testing.assert_array_equal(table.lookup([1, 2]), -2 * ONES)
        until(lambda: inflight_bytes(server) == 0)
        with sync(server.url, 2, 1) as two:
            all_at_once(
                2, lambda rank: (one, two)[rank].table("plain").apply_gradients([1, 2], ONES)
            )
            np.testing.assert_array_equal(table.lookup([1, 2]), -4 * ONES)


def test_a_worker_takes_over_from_itself_while_its_old_connection_lives(
    server: ServerProcess,
) -> None:
    with sync(server.url, 2, 0) as one, sync(server.url, 2, 1) as old:
        table = one.create_table(PLAIN)
        with pytest.raises(hps.ConfigError, match="rank 1 of 2 workers is there already"):
            sync(server.url, 2, 1, client_id="somebody else")
        with sync(server.url, 2, 1) as new:
            all_at_once(
                2, lambda rank: (one, new)[rank].table("plain").apply_gradients([1, 2], ONES)
            )
            with pytest.raises(hps.UnavailableError, match="taken over"):
                old.table("plain").apply_gradients([1, 2], ONES, timeout=5)
        np.testing.assert_array_equal(table.lookup([1, 2]), -2 * ONES)


def test_workers_of_different_numbers_do_not_meet(server: ServerProcess) -> None:
    with (
        sync(server.url, 2, 0),
        pytest.raises(hps.ConfigError, match="rank 1 of 3 workers meets others that are 2"),
    ):
        sync(server.url, 3, 1)


def test_different_steps_are_told_and_change_nothing(server: ServerProcess) -> None:
    with sync(server.url, 2, 0) as one, sync(server.url, 2, 1) as two:
        tables = [ps.create_table(PLAIN) for ps in (one, two)]
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(tables[0].apply_gradients, [1, 2], ONES, step=7)
            until_one_waits(server)
            with pytest.raises(hps.BadInputError, match="rank 1 pushes step 8, and rank 0 step 7"):
                tables[1].apply_gradients([1, 2], ONES, step=8)
            assert not tables[1].lookup([1, 2]).any()
            tables[1].apply_gradients([1, 2], ONES, step=7)
            waits.result(PATIENCE_S)
        np.testing.assert_array_equal(tables[1].lookup([1, 2]), -2 * ONES)
        with pytest.raises(hps.BadInputError, match="step is 7, but rank 0 has pushed step 7"):
            tables[0].apply_gradients([1, 2], ONES, step=7)


@pytest.mark.parametrize("restarts_server", [False, True])
def test_workers_that_restart_make_their_steps_again(tmp_path: Path, restarts_server: bool) -> None:
    """All of them, as after a checkpoint: steps that were applied are acknowledged."""
    server = ServerProcess(tmp_path / "d")
    try:

        def work(first: int, last: int) -> list[dict[str, np.ndarray]]:
            def of(rank: int) -> dict[str, np.ndarray]:
                with sync(server.url, 2, rank) as ps:
                    if first > 1:
                        return ps.tables() and push_again(ps, rank, first, last)
                    train(ps, rank, range(first, last + 1), with_steps=True)
                    return rows_of(ps)

            return all_at_once(2, of)

        def push_again(ps: Any, rank: int, first: int, last: int) -> dict[str, np.ndarray]:
            # Rows are those of later: only what is acknowledged unread leaves them as they are.
            for step in range(first, last + 1):
                ids = named(rank, step)
                ones = {"item": np.ones((60, 4), np.float32), "user": np.ones((60, 3), np.float32)}
                ps.apply_gradients({name: (ids[name], ones[name]) for name in ids}, step=step)
            return rows_of(ps)

        before = work(1, 9)
        if restarts_server:
            assert server.stop() == 0
            server.close()
            server = ServerProcess(tmp_path / "d")
        with pytest.warns(UserWarning, match="applied before this client connected"):
            after = work(5, 9)
        assert_same(after[0], before[0])
    finally:
        server.close()


def test_a_worker_that_comes_back_alone_makes_its_steps_again(server: ServerProcess) -> None:
    with sync(server.url, 2, 0) as one:
        table = one.create_table(PLAIN)
        two = sync(server.url, 2, 1)
        for step in (1, 2):
            all_at_once(
                2,
                lambda rank, step=step, two=two: (
                    (one, two)[rank].table("plain").apply_gradients([1, 2], ONES, step=step)
                ),
            )
        two.close()
        with sync(server.url, 2, 1) as two, ThreadPoolExecutor(1) as threads:
            waits = threads.submit(table.apply_gradients, [1, 2], ONES, step=3)
            until_one_waits(server)
            with pytest.warns(UserWarning, match="applied before this client connected"):
                two.table("plain").apply_gradients([1, 2], ONES, step=1)
            two.table("plain").apply_gradients([1, 2], ONES, step=2)
            assert not waits.done()
            two.table("plain").apply_gradients([1, 2], ONES, step=3)
            waits.result(PATIENCE_S)
        np.testing.assert_array_equal(table.lookup([1, 2]), -6 * ONES)


def test_what_else_a_worker_does_is_done_alone_while_others_are_waited_for(
    server: ServerProcess,
) -> None:
    with sync(server.url, 2, 0) as one, sync(server.url, 2, 1) as two:
        table = one.create_table(PLAIN)
        table.assign([1, 2], 5 * ONES)
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(table.apply_gradients, [1, 2], ONES)
            until_one_waits(server)
            np.testing.assert_array_equal(table.lookup([1, 2]), 5 * ONES)
            table.assign([3], 7 * ONES[:1])
            assert table.remove([3]) == 1
            assert not waits.done()
            two.table("plain").apply_gradients([2], ONES[:1])
            waits.result(PATIENCE_S)
        np.testing.assert_array_equal(table.lookup([1, 2]), [[4, 4], [3, 3]])


def test_a_round_of_large_pushes_comes_in_parts(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('frame_limit = "64KiB"\n', encoding="utf-8")
    keys = np.arange(6000)
    with ServerProcess(tmp_path / "d", "--config", str(config)) as server:

        def work(rank: int) -> np.ndarray:
            with sync(server.url, 2, rank, wire_dtype="bfloat16" if rank else "float32") as ps:
                table = ps.create_table(PLAIN)
                mine = keys[rank * 1000 : rank * 1000 + 5000]
                table.apply_gradients(mine, np.ones((5000, 2), np.float32))
                table.apply_gradients(mine[:0], np.ones((0, 2), np.float32))
                return table.lookup(keys)

        count = (keys < 5000).astype(np.float32) + (keys >= 1000)
        for rows in all_at_once(2, work):
            np.testing.assert_array_equal(rows, -np.stack([count, count], axis=1))
        until(lambda: inflight_bytes(server) == 0)


def test_bad_gradients_of_one_are_told_to_it_and_the_round_goes_on(server: ServerProcess) -> None:
    with sync(server.url, 2, 0) as one, sync(server.url, 2, 1) as two:
        table = one.create_table(PLAIN)
        with ThreadPoolExecutor(1) as threads:
            waits = threads.submit(table.apply_gradients, [1, 2], ONES)
            until_one_waits(server)
            with pytest.raises(hps.TableNotFoundError):
                two.apply_gradients({"absent": ([1, 2], ONES)})
            with pytest.raises(hps.BadInputError, match="finite"):
                two.apply_gradients({"plain": ([1, 2], ONES * np.float32(np.inf))})
            two.apply_gradients({"plain": ([1, 2], ONES)})
            waits.result(PATIENCE_S)
        np.testing.assert_array_equal(table.lookup([1, 2]), -2 * ONES)


@pytest.mark.parametrize("kind", ["tcp", "tcp-aio"])
def test_a_worker_may_be_so_many_pushes_ahead(server: ServerProcess, kind: str) -> None:
    with (
        sync(server.url, 2, 0, kind, staleness=2) as fast,
        sync(server.url, 2, 1, kind, staleness=2) as slow,
    ):
        table = fast.create_table(PLAIN)
        own = ONES.copy()
        for _ in range(2):
            table.apply_gradients([1, 2], own)
            own[:] = 1  # It is the caller's again.
        until_one_waits(server, 2)
        assert not table.lookup([1, 2]).any()
        with ThreadPoolExecutor(1) as threads:
            third = threads.submit(table.apply_gradients, [1, 2], ONES)
            time.sleep(0.1)
            assert not third.done(), "the third waits for the first"
            slow.table("plain").apply_gradients([1, 2], ONES)
            third.result(PATIENCE_S)
        for _ in range(2):
            slow.table("plain").apply_gradients([1, 2], ONES)
        assert fast.stats()["keys"] == 2, "what tells of pushes waits for them"
        np.testing.assert_array_equal(table.lookup([1, 2]), -6 * ONES)


def test_what_went_wrong_with_a_late_push_is_raised(server: ServerProcess) -> None:
    ahead = sync(server.url, 2, 0, staleness=3, timeout=0.5)
    table = ahead.create_table(PLAIN)
    table.apply_gradients([1, 2], ONES)
    with pytest.raises(hps.DeadlineError, match="2 workers"):
        ahead.close()
    until(lambda: inflight_bytes(server) == 0)


def test_a_copy_reads_and_does_not_push(server: ServerProcess) -> None:
    with sync(server.url, 1, 0) as ps:
        table = ps.create_table(PLAIN)
        table.apply_gradients([1, 2], ONES)
        with pickle.loads(pickle.dumps(ps)) as copy:  # noqa: S301 - our own bytes
            np.testing.assert_array_equal(copy.table("plain").lookup([1, 2]), -ONES)
            with pytest.raises(hps.ConfigError, match="copy of a client"):
                copy.table("plain").apply_gradients([1, 2], ONES)
        table.apply_gradients([1, 2], ONES)
        np.testing.assert_array_equal(table.lookup([1, 2]), -2 * ONES)


def test_threads_of_one_worker_push_rounds_of_their_own(server: ServerProcess) -> None:
    """Whichever comes first: their sum is the same."""
    with sync(server.url, 1, 0) as ps:
        table = ps.create_table(PLAIN)

        def work() -> None:
            for _ in range(20):
                table.apply_gradients([1, 2], ONES)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(table.lookup([1, 2]), -60 * ONES)
