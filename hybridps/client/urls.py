"""URLs of `connect`: which servers, or which directory, and with which settings. Pure but for the
defaults of a store in this process, which look at the machine.

    hps://HOST[:PORT][,HOST[:PORT]...]     hps+unix://PATH[,PATH...]     local:PATH
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybridps.budgets import (
    cores,
    default_cold,
    default_dram,
    default_nvme,
    free_disk_bytes,
    ram_bytes,
)
from hybridps.errors import BadInputError, ConfigError
from hybridps.sizes import parse_size

_FORMS: Final = (
    '"hps://HOST" or "hps://HOST:PORT" (several by commas, shards in order), "hps+unix://PATH" or'
    ' "local:PATH"'
)
PORT: Final = 7440
_PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """One server: TCP when it has a port, else a unix socket."""

    host: str
    port: int | None

    def __str__(self) -> str:
        if self.port is None:
            return f"hps+unix://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"hps://{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """A store in this process, as `_core.Store` opens it."""

    path: str
    dram: int
    nvme: int
    # Directory and cap of the cold tier.
    cold: tuple[str, int] | None
    durability: str
    threads: int
    scrub_rate: int


def parse_servers(url: str) -> list[Address] | None:
    """The servers of a URL in shard order; None for `local:`. Raises ConfigError."""
    if not isinstance(url, str):
        raise ConfigError(f"url is {url!r}; give {_FORMS}")
    if url.startswith("local:"):
        return None
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("hps", "hps+unix") or not rest:
        raise ConfigError(f"url is {url!r}; give {_FORMS}")
    parts = rest.split(",")
    addresses = [_unix(p, url) if scheme == "hps+unix" else _tcp(p, url) for p in parts]
    if len(set(addresses)) != len(addresses):
        raise ConfigError(f"url {url!r} names a server twice; name each shard once, in order")
    return addresses


def _unix(path: str, url: str) -> Address:
    if not path:
        raise ConfigError(f"url {url!r} has an empty path; give {_FORMS}")
    return Address(path, None)


def _tcp(part: str, url: str) -> Address:
    """HOST, HOST:PORT, [IPV6] or [IPV6]:PORT."""
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]/\s]+)(?::(\d+))?", part.strip().rstrip("/"))
    port = int(match[2] or PORT) if match is not None else 0
    if match is None or not 0 < port <= _PORT_MAX:
        raise ConfigError(
            f"url {url!r} holds {part!r}; give HOST, HOST:PORT with a port of 1 to {_PORT_MAX}, or"
            " [IPV6]:PORT"
        )
    return Address(match[1].strip("[]"), port)


def local_settings(
    url: str,
    *,
    dram: int | str | None,
    nvme: int | str | None,
    cold: str | os.PathLike[str] | None,
    durability: str | None,
    threads: int | None,
    scrub_rate: int | str | None,
    cold_cap: int | str | None = None,
) -> LocalSettings:
    """The store of a `local:` URL. Raises ConfigError."""
    path = url.removeprefix("local:")
    if not path:
        raise ConfigError(f"url {url!r} has no path; give {_FORMS}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads is {threads!r}; give an int of at least 1")
    dram_bytes = default_dram(ram_bytes()) if dram is None else _size(dram, "dram")
    nvme_bytes = _default_nvme(path) if nvme is None else _size(nvme, "nvme")
    return LocalSettings(
        path=path,
        dram=dram_bytes,
        nvme=nvme_bytes,
        cold=_cold(cold, cold_cap),
        durability=durability or "none",
        threads=threads or cores(),
        scrub_rate=0 if scrub_rate is None else _size(scrub_rate, "scrub_rate"),
    )


def _cold(directory: object, cap: int | str | None) -> tuple[str, int] | None:
    if directory is None:
        if cap is not None:
            raise ConfigError(f"cold_cap is {cap!r}, but there is no cold directory; give cold=")
        return None
    if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise ConfigError(f"cold is {directory!r}; give the path of a directory")
    path = os.fsdecode(directory)
    remedy = "give cold_cap=, or a directory on another file system"
    size = default_cold(Path(path), remedy) if cap is None else _size(cap, "cold_cap")
    return path, size


def refuse_local_settings(url: str, settings: Mapping[str, object]) -> None:
    """Refuses settings that only a store in this process takes."""
    for name, value in settings.items():
        if value is not None:
            raise ConfigError(
                f"{name}= belongs to local: URLs, url is {url!r}; set it where the server starts"
            )


def _size(size: int | str, name: str) -> int:
    try:
        return parse_size(size, name)
    except BadInputError as error:
        raise ConfigError(str(error)) from None


def _default_nvme(path: str) -> int:
    free = free_disk_bytes(Path(path))
    return default_nvme(free, repr(path), "give nvme=, or a directory on another file system")
