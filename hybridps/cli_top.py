"""`hybridps top`: what servers do now, a line each, from their ops ports.

Rates, hits and latencies are those between two looks at /metrics; filling is that of the last one.
"""

import argparse
import http.client
import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final
from urllib.parse import urlsplit

from hybridps.errors import ConfigError, HybridPSError, UnavailableError
from hybridps.server.history import quantile
from hybridps.server.metrics import ROWS_METHODS
from hybridps.sizes import format_size

DEFAULT_OPS: Final = "127.0.0.1:7441"
_INTERVAL_MIN_S: Final = 0.2
_TIMEOUT_S: Final = 5.0
# A store of thousands of tables tells some megabytes; more is no server of ours.
_ANSWER_MAX_BYTES: Final = 64 << 20
_EXIT_USAGE, _EXIT_UNAVAILABLE = 2, 5
_STORE_LINE: Final = re.compile(r"^hybridps_store_(\w+?)(?:_total)? ([0-9.e+]+)$", re.MULTILINE)
_CONNECTIONS_LINE: Final = re.compile(r"^hybridps_connections ([0-9.e+]+)$", re.MULTILINE)
_BUCKET_LINE: Final = re.compile(
    r'^hybridps_request_seconds_bucket\{le="([^"]+)",method="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE
)
# Past the proxies of the environment: ops ports are near.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_CLEAR: Final = "\x1b[H\x1b[2J"
_HEAD: Final = (
    f"{'server':<22} {'keys/s':>10} {'hits':>6} {'p50 ms':>8} {'p99 ms':>8} {'reads/s':>9}"
    f" {'ahead/s':>9} {'dram':>20} {'nvme':>20} {'conns':>6}"
)


@dataclass(frozen=True)
class Look:
    """What a server's /metrics tell at one moment: counters of its store, and calls on rows."""

    at_s: float
    store: Mapping[str, int]
    connections: int = 0
    # Calls answered within each bound so far.
    within: Mapping[float, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Now:
    """What a server did between two looks. None: nothing to tell it from. `reason`: why there is
    nothing at all.
    """

    server: str
    seconds: float = 0.0
    keys_per_s: float | None = None
    hit_ratio: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    device_reads_per_s: float | None = None
    background_reads_per_s: float | None = None
    dram_bytes: int | None = None
    dram_limit: int | None = None
    nvme_bytes: int | None = None
    nvme_limit: int | None = None
    connections: int | None = None
    reason: str | None = None


def main(arguments: Sequence[str]) -> int:
    """Shows servers until it is interrupted, or once; returns the exit code."""
    flags = _parser().parse_args(arguments)
    try:
        servers = [_checked(server) for server in flags.servers]
        if flags.interval < _INTERVAL_MIN_S:
            raise ConfigError(f"--interval is {flags.interval}; give {_INTERVAL_MIN_S} s or more")
        for rows in _looks(servers, flags.interval, is_strict=flags.once):
            _print(rows, as_json=flags.json, is_live=not flags.once)
            if flags.once:
                break
    except HybridPSError as error:
        told = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(told) if flags.json else f"hybridps: {error}", file=sys.stderr)
        return _EXIT_UNAVAILABLE if isinstance(error, UnavailableError) else _EXIT_USAGE
    except (KeyboardInterrupt, BrokenPipeError):
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybridps top",
        description="What servers do now: keys a second, hits, latency, device reads, filling.",
    )
    parser.add_argument(
        "servers", nargs="*", default=[DEFAULT_OPS], help=f"ops addresses ({DEFAULT_OPS})"
    )
    parser.add_argument("--interval", type=float, default=2.0, help="seconds (%(default)s)")
    parser.add_argument("--once", action="store_true", help="one interval, then end")
    parser.add_argument("--json", action="store_true", help="a JSON array an interval on stdout")
    return parser


def _checked(server: str) -> str:
    """HOST:PORT of an ops address, also given as a URL."""
    parts = urlsplit(server if "://" in server else f"http://{server}")
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "http" or not parts.hostname or port is None:
        raise ConfigError(
            f"ops address is {server!r}; give HOST:PORT, as the server's --ops has it"
        )
    return parts.netloc


def look(server: str) -> Look:
    """Asks a server. Raises: UnavailableError."""
    try:
        url = f"http://{server}/metrics"
        with _OPENER.open(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read(_ANSWER_MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnavailableError(
            f"ops port {server} gives no metrics: {reason}; name the --ops address of a running"
            " server"
        ) from None
    return read(text.decode("utf-8", "replace"), time.monotonic())


def read(text: str, at_s: float) -> Look:
    """A look, from the text of /metrics."""
    within: dict[float, int] = {}
    for bound, method, count in _BUCKET_LINE.findall(text):
        if method in ROWS_METHODS:
            within[float(bound)] = within.get(float(bound), 0) + int(float(count))
    store = {name: int(float(value)) for name, value in _STORE_LINE.findall(text)}
    connections = _CONNECTIONS_LINE.search(text)
    return Look(at_s, store, int(float(connections[1])) if connections else 0, within)


def between(server: str, before: Look, after: Look) -> Now:
    """What happened from one look to the next. A server that was started anew has begun at zero."""
    seconds = after.at_s - before.at_s
    if not (before.store and after.store):
        return Now(server, seconds, reason="the store is being opened")

    def grown(name: str) -> int:
        return max(0, after.store.get(name, 0) - before.store.get(name, 0))

    hits, misses = grown("cache_hits"), grown("cache_misses")
    return Now(
        server=server,
        seconds=seconds,
        keys_per_s=grown("unique_keys") / seconds,
        hit_ratio=hits / (hits + misses) if hits + misses else None,
        p50_ms=_latency_ms(0.5, before, after),
        p99_ms=_latency_ms(0.99, before, after),
        device_reads_per_s=grown("device_reads") / seconds,
        background_reads_per_s=grown("background_reads") / seconds,
        dram_bytes=after.store.get("dram_bytes"),
        dram_limit=after.store.get("dram_limit"),
        nvme_bytes=after.store.get("nvme_bytes"),
        nvme_limit=after.store.get("nvme_limit"),
        connections=after.connections,
    )


def _latency_ms(share: float, before: Look, after: Look) -> float | None:
    bounds = sorted(after.within)
    grown = [max(0, after.within[bound] - before.within.get(bound, 0)) for bound in bounds]
    counts = [max(0, b - a) for a, b in zip([0, *grown], grown, strict=False)]
    seconds = quantile(share, counts, bounds[:-1])
    return None if seconds is None else 1000 * seconds


def _looks(servers: Sequence[str], interval_s: float, *, is_strict: bool) -> Iterator[list[Now]]:
    """What each server did, interval by interval; one that does not answer says so in its row, or,
    if that is strict, ends it.
    """
    before: dict[str, Look] = {}
    while True:
        rows = []
        for server in servers:
            try:
                after = look(server)
            except UnavailableError as error:
                if is_strict:
                    raise
                before.pop(server, None)
                rows.append(Now(server, reason=str(error).partition(";")[0]))
                continue
            if server in before:
                rows.append(between(server, before[server], after))
            before[server] = after
        if rows:
            yield rows
        time.sleep(interval_s)


def _print(rows: Sequence[Now], *, as_json: bool, is_live: bool) -> None:
    if as_json:
        print(json.dumps([asdict(row) for row in rows]), flush=True)
        return
    clear = _CLEAR if is_live and sys.stdout.isatty() else ""
    print(clear + "\n".join([_HEAD, *map(show, rows)]), flush=True)


def show(row: Now) -> str:
    """One line."""
    if row.reason is not None:
        return f"{row.server:<22} {row.reason}"
    hits = "-" if row.hit_ratio is None else f"{100 * row.hit_ratio:.1f}%"
    dram = _filled(row.dram_bytes, row.dram_limit)
    nvme = _filled(row.nvme_bytes, row.nvme_limit)
    return (
        f"{row.server:<22} {_number(row.keys_per_s, 0):>10} {hits:>6} {_number(row.p50_ms, 2):>8}"
        f" {_number(row.p99_ms, 2):>8} {_number(row.device_reads_per_s, 0):>9}"
        f" {_number(row.background_reads_per_s, 0):>9} {dram:>20} {nvme:>20} {row.connections:>6}"
    )


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _filled(held: int | None, limit: int | None) -> str:
    if held is None:
        return "-"
    return f"{format_size(held)}/{format_size(limit)}" if limit else format_size(held)
