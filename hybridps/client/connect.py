"""`connect`: from a URL to a client."""

from collections.abc import Mapping
from typing import Any

from hybridps import _core
from hybridps.client.blocking import ParameterServer
from hybridps.client.local import LocalTransport
from hybridps.client.urls import local_settings, parse_servers, refuse_local_settings
from hybridps.errors import ConfigError


def connect(
    url: str,
    *,
    client_id: str | None = None,
    timeout: float = 10.0,
    dram: int | str | None = None,
    nvme: int | str | None = None,
    cold: str | None = None,
    durability: str | None = None,
    threads: int | None = None,
) -> ParameterServer:
    """A client of the servers of `url`, or a store in this process.

    Args:    url: "hps://HOST:PORT", several by commas with the shards in order;
             "hps+unix://PATH"; "local:PATH".
             client_id: names a trainer across restarts; a new session takes over from the old one.
             timeout: seconds for connecting, and for each call that does not say otherwise.
             dram, nvme, cold, durability, threads: of `local:` alone; a quarter of the memory,
             three quarters of the free disk, "none" and one thread per core unless given.
    Raises:  ConfigError for the URL or a setting, UnavailableError when no server answers.
    """
    check_connect(client_id, timeout)
    addresses = parse_servers(url)
    own = {"dram": dram, "nvme": nvme, "cold": cold, "durability": durability, "threads": threads}
    if addresses is None:
        return ParameterServer(open_local(url, client_id, own), url)
    refuse_local_settings(url, own)
    raise ConfigError(f"url is {url!r}; this build only opens local: URLs")


def check_connect(client_id: object, timeout: object) -> None:
    """Refuses what no connection can have."""
    if client_id is not None and not (isinstance(client_id, str) and client_id):
        raise ConfigError(f"client_id is {client_id!r}; give a non-empty str, or None")
    check_timeout(timeout)


def check_timeout(timeout: object) -> None:
    """Refuses what is no number of seconds above 0."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
        raise ConfigError(f"timeout is {timeout!r}; give seconds above 0")


def open_local(url: str, client_id: str | None, own: Mapping[str, Any]) -> LocalTransport:
    """The transport of a `local:` URL."""
    settings = local_settings(url, **own)
    store = _core.Store(
        settings.path,
        dram=settings.dram,
        nvme=settings.nvme,
        durability=settings.durability,
        threads=settings.threads,
    )
    return LocalTransport(store, settings.path, client_id)
