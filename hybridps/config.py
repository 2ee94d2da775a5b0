"""Settings of the server: where each may come from, what it means, and its range.

Precedence: defaults < TOML file < HYBRIDPS_* environment < flags. Every setting has one name,
spelt `a_name` in TOML, `HYBRIDPS_A_NAME` in the environment and, if it has one, `--a-name` as a
flag.
An unknown name is an error that gives the nearest known one; a value out of range is an error that
says where the value came from. Nothing here opens a store or a socket.
"""

import argparse
import difflib
import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from hybridps.budgets import (
    COLD_MIN_BYTES,
    DRAM_MIN_BYTES,
    NVME_MIN_BYTES,
    cores,
    default_cold,
    default_dram,
    default_nvme,
    free_disk_bytes,
    ram_bytes,
)
from hybridps.durations import parse_duration
from hybridps.errors import BadInputError, ConfigError
from hybridps.security.tls import ServerFiles
from hybridps.sizes import format_size, parse_size

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# Headers and pointers of a call take a few hundred bytes: a smaller limit could refuse hello.
FRAME_MIN_BYTES = 4 * KIB
# A message is framed by 32-bit counts of 8-byte words and held whole in memory.
FRAME_MAX_BYTES = 2 * GIB
THREADS_MAX = 1024
PORT_MAX = 65535
# As many shards as there are buckets.
SHARDS_MAX = 4096
DRAIN_MAX_S = 3600
ENV_PREFIX = "HYBRIDPS_"
# Of the command line, of the tests and of `make`: ours, but no settings of a server.
ENV_OTHERS = frozenset(
    {
        *("HYBRIDPS_URL", "HYBRIDPS_TOKEN", "HYBRIDPS_TLS_CA"),
        *("HYBRIDPS_SHARED", "HYBRIDPS_LONG", "HYBRIDPS_WHEELS"),
        *("HYBRIDPS_TORCH_SITE", "HYBRIDPS_TENSORFLOW_SITE"),
    }
)
# What Kubernetes puts into the environment of a container for each Service of its namespace, under
# names that begin with the Service's: addresses, nobody's settings. A Service `hybridps-ops` gives
# HYBRIDPS_OPS_SERVICE_HOST and so on.
_INJECTED = re.compile(
    r"(?:\w+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP|SCTP)(?:_\w+)?)"
)
_INJECTED_PORT = re.compile(r"(?:\w+_)?PORT")
_INJECTED_URL = re.compile(r"(?:tcp|udp|sctp)://\S*")
DURABILITY_MODES = ("none", "process", "interval", "always")


@dataclass(frozen=True, slots=True)
class Address:
    """Host and port of a TCP listener; port 0 asks the system for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A name counts only if it is `localhost`."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Everything `python -m hybridps.server` may be told, checked. See `SETTINGS` for meanings."""

    data: Path
    listen: Address | None
    unix: Path | None
    ops: Address | None
    dram_bytes: int
    nvme_bytes: int
    cold: Path | None
    cold_cap_bytes: int | None
    durability: str
    shard: tuple[int, int]
    threads: int
    loop: str
    token_file: Path | None
    tls: ServerFiles | None
    insecure: bool
    frame_limit_bytes: int
    keys_limit: int
    connections_max: int
    inflight_max_bytes: int
    log_format: str
    restart_on_failure: bool
    drain_s: float
    scrub_rate_bytes: int
    # Of a replica: whom it follows, which tables (None: all), and what it shows there.
    follow: str | None = None
    tables: tuple[str, ...] | None = None
    follow_token_file: Path | None = None
    follow_ca: Path | None = None
    # What it makes by itself; None: nothing.
    checkpoint_path: Path | None = None
    checkpoint_every_s: int | None = None
    checkpoint_keep: int = 3

    @property
    def is_secured(self) -> bool:
        """Whether others on the network can neither read the traffic nor call a verb unasked."""
        return self.tls is not None and self.token_file is not None


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its name, the field it fills, how text becomes a value, and its help."""

    name: str
    field: str
    parse: Callable[[Any], Any]
    help: str
    metavar: str | None = None  # None: no flag, only TOML and environment


def load(argv: Sequence[str], environ: Mapping[str, str] | None = None) -> ServerConfig:
    """The effective settings of a server started with these arguments.

    Raises: ConfigError, one line naming the setting, where it came from, the value and the remedy.
    """
    environ = os.environ if environ is None else environ
    flags = _read_flags(argv)
    env = _read_environment(environ)
    config_file = flags.pop("config", env.pop("config", None))
    file = _read_toml(Path(config_file[1])) if config_file else {}
    texts = {**file, **env, **flags}
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        if setting.name in texts:
            origin, text = texts[setting.name]
            try:
                values[setting.field] = setting.parse(text)
            except ValueError as error:
                raise ConfigError(f"{origin} is {text!r}; {error}") from None
    origins = {name: origin for name, (origin, _) in texts.items()}
    return _complete(values, origins)


def _parse_address(value: Any) -> Address | None:
    """`HOST:PORT`, `[IPV6]:PORT` or `off`."""
    if value == "off":
        return None
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]\s]+):(\d{1,5})", str(value))
    if match is None or int(match[2]) > PORT_MAX:
        raise ValueError("give HOST:PORT, such as 127.0.0.1:7440 or [::1]:7440, or off")
    return Address(match[1].strip("[]"), int(match[2]))


def _parse_path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise ValueError("give a path")
    return Path(value).expanduser()


def _parse_names(value: Any) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in str(value).split(",")))
    if not all(names):
        raise ValueError("give names of tables, such as item,user")
    return names


def _parse_shard(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", str(value))
    shard = (int(match[1]), int(match[2])) if match else (1, 0)
    if not 0 <= shard[0] < shard[1] <= SHARDS_MAX:
        raise ValueError(f"give I/N with I from 0 to N - 1 and N at most {SHARDS_MAX}, such as 0/2")
    return shard


def _parse_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in known:
        raise ValueError("give true or false")
    return known[str(value).lower()]


def _choice(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"give one of {', '.join(allowed)}{hint}")
        return str(value)

    return parse


def _count(low: int, high: int) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        text = str(value)
        if isinstance(value, bool) or not text.isdigit() or not low <= int(text) <= high:
            raise ValueError(f"give a whole number from {low} to {high}")
        return int(text)

    return parse


def _size(low: int, high: int | None = None) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        try:
            size_bytes = parse_size(value)
        except BadInputError:
            raise ValueError("give a size like 512MiB, 8GiB, or a number of bytes") from None
        if size_bytes < low:
            raise ValueError(f"give at least {format_size(low)}")
        if high is not None and size_bytes > high:
            raise ValueError(f"give at most {format_size(high)}")
        return size_bytes

    return parse


def _period(value: Any) -> int:
    try:
        number = int(value) if isinstance(value, str) and value.isdigit() else value
        return parse_duration(number, "it")
    except BadInputError:
        raise ValueError("give seconds from 1 on, or a text like 90s, 15m, 12h, 1d") from None


def _seconds(value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if isinstance(value, bool) or not 0 <= seconds <= DRAIN_MAX_S:
        raise ValueError(f"give seconds from 0 to {DRAIN_MAX_S}")
    return seconds


SETTINGS = (
    Setting("data", "data", _parse_path, "data directory (./hybridps-data)", "DIR"),
    Setting(
        "listen",
        "listen",
        _parse_address,
        "address of the service (127.0.0.1:7440; port 0: any free one; off: unix socket only)",
        "HOST:PORT",
    ),
    Setting("unix", "unix", _parse_path, "unix socket of the service (none)", "PATH"),
    Setting(
        "ops",
        "ops",
        _parse_address,
        "address of health, metrics and status page (127.0.0.1:7441; off: none)",
        "HOST:PORT",
    ),
    Setting(
        "dram",
        "dram_bytes",
        _size(DRAM_MIN_BYTES),
        "bound on rows, index, statistics and buffers (a quarter of RAM; at least 8MiB)",
        "SIZE",
    ),
    Setting(
        "nvme",
        "nvme_bytes",
        _size(NVME_MIN_BYTES),
        "bound on all files of the data directory (3/4 of the free disk; at least 64MiB)",
        "SIZE",
    ),
    Setting("cold", "cold", _parse_path, "directory of rarely read rows (none)", "DIR"),
    Setting(
        "cold_cap",
        "cold_cap_bytes",
        _size(COLD_MIN_BYTES),
        "bound on all files of the cold directory (3/4 of its free disk; at least 16MiB)",
        "SIZE",
    ),
    Setting(
        "durability",
        "durability",
        _choice(*DURABILITY_MODES),
        "what an acknowledgement promises: none, process, interval or always (interval)",
        "MODE",
    ),
    Setting(
        "shard",
        "shard",
        _parse_shard,
        "this server's share of the keys, stored in the data directory (0/1)",
        "I/N",
    ),
    Setting("threads", "threads", _count(1, THREADS_MAX), "engine threads (one a core)", "N"),
    Setting(
        "loop",
        "loop",
        _choice("auto", "uvloop", "asyncio"),
        "event loop; auto takes uvloop when it is installed (auto)",
        "auto|uvloop|asyncio",
    ),
    Setting(
        "token_file",
        "token_file",
        _parse_path,
        "who may call what; none: everybody who reaches the socket (none)",
        "FILE",
    ),
    Setting("tls_cert", "tls_cert", _parse_path, "certificate of the TCP service, PEM", "FILE"),
    Setting("tls_key", "tls_key", _parse_path, "its key, PEM", "FILE"),
    Setting(
        "tls_client_ca",
        "tls_client_ca",
        _parse_path,
        "authorities of clients, PEM: only clients with a certificate of them get in (none)",
        "FILE",
    ),
    Setting(
        "insecure",
        "insecure",
        _parse_bool,
        "allow a bind beyond loopback without TLS and tokens (false)",
    ),
    Setting(
        "frame_limit",
        "frame_limit_bytes",
        _size(FRAME_MIN_BYTES, FRAME_MAX_BYTES),
        "largest message read from a client, and largest reply",
    ),
    Setting("keys_limit", "keys_limit", _count(1, 2**31), "most keys one call may name"),
    Setting("connections", "connections_max", _count(1, 10**6), "most connections at a time"),
    Setting(
        "inflight",
        "inflight_max_bytes",
        _size(FRAME_MIN_BYTES),
        "bound on requests and replies in flight, all connections together",
    ),
    Setting("log_format", "log_format", _choice("json", "text"), "json, or text for people"),
    Setting(
        "restart_on_failure",
        "restart_on_failure",
        _parse_bool,
        "exit with 1 when the store has failed, for a supervisor to start it anew (false)",
    ),
    Setting(
        "scrub_rate",
        "scrub_rate_bytes",
        _size(0),
        "bytes a second that the scrub reads and checks in the background (4MiB; 0: none)",
        "SIZE",
    ),
    Setting("follow", "follow", str, "be a replica of these servers (none)", "URL"),
    Setting("tables", "tables", _parse_names, "which tables a replica follows (all)", "A,B"),
    Setting(
        "follow_token_file",
        "follow_token_file",
        _parse_path,
        "file with the token that a replica shows those that it follows (none)",
        "FILE",
    ),
    Setting(
        "follow_ca",
        "follow_ca",
        _parse_path,
        "authorities of those that a replica follows, PEM: encrypts (none)",
        "FILE",
    ),
    Setting(
        "checkpoint_path",
        "checkpoint_path",
        _parse_path,
        "directory of the checkpoints that the server makes by itself (none)",
        "DIR",
    ),
    Setting(
        "checkpoint_every",
        "checkpoint_every_s",
        _period,
        "time between two of them, such as 15m or 1d (none are made)",
        "PERIOD",
    ),
    Setting(
        "checkpoint_keep",
        "checkpoint_keep",
        _count(1, 10**6),
        "so many of the newest stay, and all that they are built on (3)",
        "N",
    ),
    Setting("drain", "drain_s", _seconds, "seconds that calls in flight may take after SIGTERM"),
)
_NAMES = tuple(setting.name for setting in SETTINGS)


class _OneLineParser(argparse.ArgumentParser):
    """Reports a bad command line as ConfigError instead of printing a usage text and exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _read_flags(argv: Sequence[str]) -> dict[str, tuple[str, Any]]:
    parser = _OneLineParser(
        prog="python -m hybridps.server",
        description="Serves embedding tables: DRAM while hot, NVMe while warm, a slower disk"
        " while cold.",
        epilog="Every setting may also come from --config FILE.toml (key NAME) or the environment"
        f" ({ENV_PREFIX}NAME); flags win over the environment, the environment over the file."
        f" Without a flag: {'; '.join(f'{s.name}: {s.help}' for s in SETTINGS if not s.metavar)}.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.toml", help="read settings from this file")
    for setting in SETTINGS:
        if setting.metavar is not None:
            help_text = setting.help.replace("%", "%%")
            parser.add_argument(flag_of(setting.name), metavar=setting.metavar, help=help_text)
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = ["--config", *(flag_of(s.name) for s in SETTINGS if s.metavar is not None)]
        raise ConfigError(f"unknown argument {unknown[0]!r}{_nearest(unknown[0], flags)}")
    return {k: (flag_of(k), v) for k, v in vars(known).items() if v is not None}


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _read_environment(environ: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    known = {ENV_PREFIX + name.upper(): name for name in ("config", *_NAMES)}
    found: dict[str, tuple[str, Any]] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or variable in ENV_OTHERS:
            continue
        if variable not in known:
            if _is_injected(variable.removeprefix(ENV_PREFIX), text):
                continue
            raise ConfigError(
                f"unknown environment variable {variable}{_nearest(variable, list(known))}"
            )
        found[known[variable]] = (variable, text)
    return found


def _is_injected(name: str, text: str) -> bool:
    """Whether a container platform set the variable; HYBRIDPS_PORT=7440 is a person's mistake."""
    if _INJECTED.fullmatch(name):
        return True
    return bool(_INJECTED_PORT.fullmatch(name) and _INJECTED_URL.fullmatch(text))


def _read_toml(path: Path) -> dict[str, tuple[str, Any]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read config file {path}: {error.strerror}; give a file that this user may read"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} is not TOML: {error}; correct it") from None
    for key in table:
        if key not in _NAMES:
            raise ConfigError(f"unknown key {key!r} in {path}{_nearest(key, _NAMES)}")
    return {key: (f"{key} in {path}", value) for key, value in table.items()}


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.partition("=")[0], known, n=1, cutoff=0.0)
    return f"; the nearest known one is {near[0]}" if near else ""


def _complete(values: dict[str, Any], origins: Mapping[str, str]) -> ServerConfig:
    """Fills in defaults and checks what settings say about each other."""
    data = values.setdefault("data", Path("hybridps-data"))
    values.setdefault("listen", Address("127.0.0.1", 7440))
    values.setdefault("unix", None)
    values.setdefault("ops", Address("127.0.0.1", 7441))
    values.setdefault("dram_bytes", default_dram(ram_bytes()))
    if "nvme_bytes" not in values:
        free = free_disk_bytes(data)
        values["nvme_bytes"] = default_nvme(free, str(data), "give --nvme, or another --data")
    cold = values.setdefault("cold", None)
    if cold is not None and "cold_cap_bytes" not in values:
        values["cold_cap_bytes"] = default_cold(cold, "give --cold-cap, or another --cold")
    values.setdefault("cold_cap_bytes", None)
    values.setdefault("durability", "interval")
    values.setdefault("shard", (0, 1))
    values.setdefault("threads", min(cores(), THREADS_MAX))
    values.setdefault("loop", "auto")
    values.setdefault("token_file", None)
    values["tls"] = _tls(values, origins)
    values.setdefault("insecure", False)
    # One push of 200,000 rows of 64 columns fits; all calls in flight share the same amount.
    values.setdefault("inflight_max_bytes", 64 * MIB)
    values.setdefault("frame_limit_bytes", min(64 * MIB, values["inflight_max_bytes"]))
    values.setdefault("keys_limit", 1 << 20)
    values.setdefault("connections_max", 10_000)
    values.setdefault("log_format", "json")
    values.setdefault("restart_on_failure", False)
    values.setdefault("drain_s", 30.0)
    # A thousandth of what a disk reads; a pass over a TiB takes three days.
    values.setdefault("scrub_rate_bytes", 4 * MIB)
    if "follow" not in values:
        for name in ("tables", "follow_token_file", "follow_ca"):
            if name in origins:
                raise ConfigError(f"{origins[name]} is given without follow; give both")
    config = ServerConfig(**values)
    _check_together(config, origins)
    return config


def _tls(values: dict[str, Any], origins: Mapping[str, str]) -> ServerFiles | None:
    files = [values.pop(f"tls_{part}", None) for part in ("cert", "key", "client_ca")]
    cert, key, client_ca = files
    if cert is not None and key is not None:
        return ServerFiles(cert, key, client_ca)
    if any(files):
        given = next(origins[name] for name in origins if name.startswith("tls_"))
        raise ConfigError(f"{given} is given without tls_cert and tls_key; give both")
    return None


def _check_checkpoints(config: ServerConfig, origins: Mapping[str, str]) -> None:
    if (config.checkpoint_path is None) != (config.checkpoint_every_s is None):
        given = next(origins[name] for name in origins if name.startswith("checkpoint_"))
        raise ConfigError(f"{given} needs checkpoint_path and checkpoint_every; give both")
    if config.checkpoint_every_s is not None and config.shard[1] > 1:
        raise ConfigError(
            f"{origins['checkpoint_every']} is given, but this is one of {config.shard[1]} shards,"
            " and a checkpoint is of all; run `hybridps checkpoint create` for them instead"
        )


def _check_together(config: ServerConfig, origins: Mapping[str, str]) -> None:
    _check_checkpoints(config, origins)
    if config.listen is None and config.unix is None:
        raise ConfigError(f"{origins['listen']} is off and there is no unix socket; give --unix")
    if config.cold is None and config.cold_cap_bytes is not None:
        raise ConfigError(f"{origins['cold_cap']} is given, but no cold directory; give --cold")
    if config.frame_limit_bytes > config.inflight_max_bytes:
        raise ConfigError(
            f"frame_limit {format_size(config.frame_limit_bytes)} is above inflight"
            f" {format_size(config.inflight_max_bytes)}, and one message may not be more than all;"
            " raise inflight or lower frame_limit"
        )
    for name, address in (("listen", config.listen), ("ops", config.ops)):
        if address is None or address.is_loopback or config.insecure:
            continue
        if name == "listen" and config.is_secured:
            continue
        remedy = "" if name == "ops" else "give --tls-cert, --tls-key and --token-file, "
        raise ConfigError(
            f"{origins[name]} is {address}, which other machines can reach, and traffic is not both"
            f" encrypted and authenticated; {remedy}bind to 127.0.0.1, or accept that with"
            f" insecure = true in the config file or {ENV_PREFIX}INSECURE=true"
        )
