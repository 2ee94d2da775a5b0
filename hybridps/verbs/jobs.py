"""`checkpoint` and `restore` as one server is asked: long work under a name that the caller chose.

Whoever asks first for a job begins it; asking again, also over another connection, asks after it.
So no call is long, and none is lost with a connection.
"""

import json
import secrets
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from hybridps.errors import HybridPSError
from hybridps.security.rights import Right
from hybridps.verbs.calls import Cold, Site
from hybridps.verbs.face import Run, Steps
from hybridps.verbs.kinds import Lane, Order

# Bytes that are done, and about how many there will be.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Job(Cold[dict[str, Any]]):
    """A question after a job: `result` when it has ended, else `done` and `total` bytes."""

    ORDER = Order.FREE
    LANE = Lane.ORDERS
    RIGHT = Right.ADMIN

    job: str
    request: str

    def run(self, site: Site) -> dict[str, Any]:
        """Waits a fifth of a second for its end."""
        answer: dict[str, Any] = json.loads(site.store.job(self.job, self.request))
        return answer

    @classmethod
    def answer(cls, results: Any, value: dict[str, Any]) -> None:
        """As JSON."""
        results.answer = json.dumps(value)

    @classmethod
    def result(cls, results: Any) -> dict[str, Any]:
        """As above; anything but an object is refused."""
        answer = json.loads(str(results.answer))
        if not isinstance(answer, dict):
            raise HybridPSError("the server's answer about a job is no JSON object")
        return answer


@dataclass(frozen=True, slots=True)
class CheckpointJob(Job):
    """Work for a checkpoint: it is begun, a server's file is written, the manifest is."""

    VERB = "checkpoint"


@dataclass(frozen=True, slots=True)
class RestoreJob(Job):
    """Work for a restore: tables are read, then replace those of their names, or are given up."""

    VERB = "restore"


# A run at a time, of which each gives what the next needs.
Long = Generator[Run[Any], Any, Any]


def work(
    kind: type[Job],
    shards: Sequence[int],
    request: dict[str, Any],
    timeout: float | None,
    progress: Progress | None = None,
) -> Generator[Run[Any], Any, list[Any]]:
    """The same job on some servers, to its end. Each question has the timeout, not the job.

    Raises: what a server's job ended with; the others go on by then.
    """
    text = json.dumps(request)
    questions = {shard: kind(secrets.token_hex(8), text) for shard in shards}
    results: dict[int, Any] = {}
    sizes = dict.fromkeys(shards, (0, 0))
    while len(results) < len(shards):
        left = [(shard, ask) for shard, ask in questions.items() if shard not in results]
        answers = yield Run(_ask(left), timeout)
        for (shard, _), answer in zip(left, answers, strict=True):
            if "result" in answer:
                results[shard] = answer["result"]
                sizes[shard] = (sizes[shard][1], sizes[shard][1])
            else:
                sizes[shard] = (int(answer["done"]), int(answer["total"]))
        if progress is not None:
            done, total = (sum(column) for column in zip(*sizes.values(), strict=True))
            progress(done, total)
    return [results[shard] for shard in shards]


def _ask(calls: list[tuple[int, Job]]) -> Steps[list[dict[str, Any]]]:
    answers: list[dict[str, Any]] = yield calls
    return answers
