"""Goal: over any number of kills and stops every acknowledged push is applied exactly once, bit for
bit, and a trainer notices no more than a pause. Method: two of our clients train four tables with
rows beyond DRAM, while the server is killed and stopped at random moments and started again; then
the same steps are made in an undisturbed store, and every bit is compared."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from support.campaign import rounds
from support.server import ServerProcess
from support.training import Program, assert_same, undisturbed

import hybridps as hps

ROUNDS = rounds(3)
CLIENTS = 2
# In all lives together enough for many more rows than DRAM has room for.
LIFE_STEPS = 10
PATIENCE_S = 90.0


class Lives:
    """One server after the other, on one directory and one socket."""

    def __init__(self, room: Path, durability: str) -> None:
        self.url = f"hps+unix://{room / 'socket'}"
        self._directory = room / "d"
        self._arguments = ("--unix", str(room / "socket"), "--listen", "off")
        self._arguments += ("--durability", durability)
        self._server = self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def end(self, number: signal.Signals) -> None:
        """Ends the server and starts the next."""
        self._server.send(number)
        expected = 0 if number == signal.SIGTERM else -number
        assert self._server.wait() == expected, self._server.stderr()
        self._server.close()
        self._server = self._start()

    def _start(self) -> ServerProcess:
        return ServerProcess(self._directory, *self._arguments, dram="8MiB", nvme="256MiB")


class Trainer:
    """A program at work in a thread: steps until told to stop; a call that fails ends the test."""

    def __init__(self, url: str, number: int) -> None:
        self.steps = 0
        self._url, self._number = url, number

    def train(self, stop: threading.Event) -> Program:
        """The program, once it was told to stop."""
        program = Program(hps.connect(self._url, timeout=PATIENCE_S), self._number, CLIENTS)
        while not stop.is_set():
            program.step()
            self.steps = program.steps
        return program


def train_over(lives: Lives, ends: list[signal.Signals], moments: np.random.Generator) -> list:
    """The programs, when the server was ended in each of these ways."""
    stop = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as threads:
        trainers = [Trainer(lives.url, number) for number in range(CLIENTS)]
        work = [threads.submit(trainer.train, stop) for trainer in trainers]

        def go_on() -> None:
            """Until every program has made a life's steps more."""
            goals = [trainer.steps + LIFE_STEPS for trainer in trainers]
            while any(t.steps < goal for t, goal in zip(trainers, goals, strict=True)):
                assert not any(future.done() for future in work), "a client gave up"
                time.sleep(0.01)

        try:
            for end in ends:
                go_on()
                # Somewhere within a step.
                time.sleep(moments.uniform(0.0, 0.2))
                lives.end(end)
            go_on()
        finally:
            stop.set()
        return [future.result(PATIENCE_S) for future in work]


@pytest.mark.parametrize("durability", ["process", "interval", "always"])
def test_training_over_kills_and_stops_is_exact(tmp_path: Path, durability: str) -> None:
    random = np.random.default_rng(list(durability.encode()))
    some = random.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM], ROUNDS)
    ends = [*map(signal.Signals, some), signal.SIGTERM, signal.SIGKILL]
    with Lives(tmp_path, durability) as lives:
        programs: list[Program] = train_over(lives, ends, random)
        stats = programs[0].ps.stats()
        assert stats["rows_nvme"] > stats["rows_dram"] > 0, "DRAM had room for most rows"
        for program in programs:
            with undisturbed(program, tmp_path / f"plain{program.steps}") as plain:
                assert_same(program.rows(), plain.rows())
                assert len(plain.tables["item"]) > 1000
            program.ps.close()
