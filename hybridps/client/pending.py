"""One call of one server, from the moment it is asked for until its caller has an outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybridps import _core
from hybridps.client import messages
from hybridps.client.parts import Part
from hybridps.client.retry import Deadline
from hybridps.errors import HybridPSError
from hybridps.verbs.calls import Call


class Pending:
    """A call that waits: in line, or for its answers. `call` None: only to meet the server.

    `parts` are the calls that it is sent as, several where one would not fit the server's limits;
    it is over when all are answered, or one with an exception.
    """

    __slots__ = ("answers", "call", "deadline", "error", "is_over", "number", "parts", "sends",
                 "sent", "wake")  # fmt: skip

    def __init__(self, call: Call[Any] | None, number: int, deadline: Deadline) -> None:
        self.call = call
        self.number = number
        self.deadline = deadline
        self.is_over = False
        self.error: HybridPSError | None = None
        # Of the present connection: parts, how many were sent, and what was answered to each.
        self.parts: list[Part] = []
        self.sent = 0
        self.answers: list[_core.Answer] = []
        # Connections that have carried it.
        self.sends = 0
        # Told when it is over.
        self.wake: Callable[[], None] | None = None

    @property
    def verb(self) -> str:
        """The verb by its name in the Python API."""
        return "connect" if self.call is None else self.call.spoken()

    def restart(self, parts: list[Part]) -> None:
        """Nothing of it is sent or answered: a new connection begins with the first part."""
        self.parts = parts
        self.sent = 0
        self.answers = []

    @property
    def is_held_up(self) -> bool:
        """True while the parts that follow an announcement may not be sent."""
        return self.sent == 1 and self.parts[0].is_announcement and not self.answers

    def answer(self, answer: _core.Answer) -> None:
        """The answer to the next of its parts."""
        self.answers.append(answer)
        if len(self.answers) == len(self.parts) or answer.kind == "exception":
            self.end()

    def fail(self, error: HybridPSError) -> None:
        """The call is over without an answer."""
        if not self.is_over:
            self.error = error
            self.end()

    def end(self) -> None:
        """The call is over."""
        self.is_over = True
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()

    def reply(self) -> Any:
        """What the call gives; raises its error. Decoded here, by whoever asked for it."""
        if self.error is not None:
            raise self.error
        if self.call is None:
            return None
        # Of a push in parts the last answer says what became of all, as does one that went wrong.
        last = self.answers[-1]
        # It was sent over one connection only: a duplicate is no echo of ourselves.
        return messages.finish(self.call, last, is_first=self.sends == 1)
