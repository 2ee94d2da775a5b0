"""How long to wait between attempts, and what to say when time is over. Pure.

Reads and pushes alike are sent again after a lost connection: a push keeps its number, so that the
server applies it once.
"""

import random
import socket
from collections.abc import Iterator
from typing import Final

from hybridps.client.urls import Address
from hybridps.errors import BadInputError, ConfigError, DeadlineError, UnavailableError

FIRST_DELAY_S: Final = 0.02
LONGEST_DELAY_S: Final = 1.0
# What infinity and the like come to: clocks and system calls take no more.
FOREVER_S: Final = 365 * 86400.0

WIRE_DTYPES: Final = ("float32", "bfloat16", "float16")


def delays() -> Iterator[float]:
    """Seconds before each further attempt: full jitter, so that clients do not return as one."""
    longest = FIRST_DELAY_S
    while True:
        yield random.uniform(0, longest)  # noqa: S311 - spreads load, guards nothing
        longest = min(2 * longest, LONGEST_DELAY_S)


class Deadline:
    """The end of one call, on the clock that `now_s` was read from."""

    __slots__ = ("end_s", "timeout")

    def __init__(self, timeout: float, now_s: float) -> None:
        self.timeout = timeout
        self.end_s = now_s + timeout

    def error(self, verb: str, where: object, workers: int = 0) -> DeadlineError:
        """The call's time is over while a server had it. `workers`: who had to make it together."""
        cause = f" ({workers} workers push it together: one may be lost)" if workers > 1 else ""
        return DeadlineError(
            f"{verb} at {where} did not end within {self.timeout:g} s{cause}; give more timeout= or"
            " fewer keys (a push may still be applied, once)"
        )

    def unavailable(self, address: Address, cause: object) -> UnavailableError:
        """The call's time is over and no server answered."""
        return UnavailableError(
            f"no server answers at {address} within {self.timeout:g} s: {cause};"
            f" {_remedy(address, cause)}"
        )


def _remedy(address: Address, cause: object) -> str:
    """What to do about a server that does not answer: start one only where none is there."""
    if isinstance(cause, (ConnectionRefusedError, FileNotFoundError)):
        place = f"--listen {address.host}:{address.port}" if address.port else ""
        place = place or f"--unix {address.host}"
        return f"start it (python -m hybridps.server {place}), or correct the URL"
    if isinstance(cause, PermissionError):
        return "let this user write to the socket, or correct the URL"
    if isinstance(cause, socket.gaierror):
        return "no such host is known: correct the URL"
    return (
        "something is there that does not answer as a server: see its log, or correct the URL; if"
        " it speaks TLS, give connect(tls=)"
    )


def check_timeout(timeout: float | None, default: float) -> float:
    """Seconds of a call; None is that of `connect`. Raises BadInputError."""
    if timeout is None:
        return default
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise BadInputError(f"timeout is {timeout!r}; give seconds above 0, or None")
    return min(timeout, FOREVER_S)


def check_settings(client_id: object, timeout: object, wire_dtype: object = "float32") -> None:
    """Refuses what no connection can have."""
    if wire_dtype not in WIRE_DTYPES:
        names = ", ".join(map(repr, WIRE_DTYPES))
        raise ConfigError(f"wire_dtype is {wire_dtype!r}; give one of {names}")
    if client_id is not None and not (isinstance(client_id, str) and client_id):
        raise ConfigError(f"client_id is {client_id!r}; give a non-empty str, or None")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigError(f"timeout is {timeout!r}; give seconds above 0")
