"""URLs of `connect`: which servers, or which directory, and with which settings. Pure but for the
defaults of a store in this process, which look at the machine.

    hps://HOST:PORT[,HOST:PORT...]     hps+unix://PATH[,PATH...]     local:PATH
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hybridps.errors import BadInputError, ConfigError
from hybridps.sizes import format_size, parse_size

_FORMS: Final = (
    '"hps://HOST:PORT" (several by commas, shards in order), "hps+unix://PATH" or "local:PATH"'
)
_PORT_MAX: Final = 65535
DRAM_MIN: Final = 8 << 20
NVME_MIN: Final = 64 << 20


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
    durability: str
    threads: int


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
    host, separator, port = part.strip().rstrip("/").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdecimal() or not 0 < int(port) <= _PORT_MAX:
        raise ConfigError(f"url {url!r} holds {part!r}; give HOST:PORT with a port of 1 to 65535")
    return Address(host, int(port))


def local_settings(
    url: str,
    *,
    dram: int | str | None,
    nvme: int | str | None,
    cold: object,
    durability: str | None,
    threads: int | None,
) -> LocalSettings:
    """The store of a `local:` URL. Raises ConfigError."""
    path = url.removeprefix("local:")
    if not path:
        raise ConfigError(f"url {url!r} has no path; give {_FORMS}")
    if cold is not None:
        raise ConfigError(f"cold is {cold!r}; this version has no cold tier: give None")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ConfigError(f"threads is {threads!r}; give an int of at least 1")
    dram_bytes = max(_memory() // 4, DRAM_MIN) if dram is None else _size(dram, "dram")
    nvme_bytes = _default_nvme(path) if nvme is None else _size(nvme, "nvme")
    return LocalSettings(
        path=path,
        dram=dram_bytes,
        nvme=nvme_bytes,
        durability=durability or "none",
        threads=threads or _cores(),
    )


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
    size = _free(path) * 3 // 4
    if size < NVME_MIN:
        raise ConfigError(
            f"three quarters of the free disk at {path!r} are {format_size(size)}, and a store"
            f" needs {format_size(NVME_MIN)}; give a directory on another file system, or free some"
        )
    return size


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _free(path: str) -> int:
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
