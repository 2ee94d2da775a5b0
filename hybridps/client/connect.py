"""`connect`, blocking and asynchronous: from a URL to a client."""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridps import _core
from hybridps.client import aio, leave
from hybridps.client.blocking import ParameterServer
from hybridps.client.local import LocalTransport
from hybridps.client.retry import check_settings
from hybridps.client.urls import Address, local_settings, parse_servers, refuse_local_settings
from hybridps.client.worker import Worker, worker_of
from hybridps.errors import ConfigError
from hybridps.security.credentials import NOBODY, Credentials, credentials

# True, a path of a PEM file, or a mapping of ca, cert, key and server_name.
Tls = bool | str | Path | Mapping[str, str | Path | None] | None


def connect(
    url: str,
    *,
    client_id: str | None = None,
    timeout: float = 10.0,
    dram: int | str | None = None,
    nvme: int | str | None = None,
    cold: str | os.PathLike[str] | None = None,
    cold_cap: int | str | None = None,
    durability: str | None = None,
    threads: int | None = None,
    scrub_rate: int | str | None = None,
    token: str | None = None,
    tls: Tls = None,
    wire_dtype: str = "float32",
    mode: str = "async",
    workers: int | None = None,
    rank: int | None = None,
    staleness: int | None = None,
) -> ParameterServer:
    """A client of the servers of `url`, or a store in this process.

    Args:    url: "hps://HOST:PORT" (7440 unless given), several by commas with the shards in order;
             "hps+unix://PATH"; "local:PATH", which is closed when the program ends.
             client_id: names a trainer across restarts; a new session takes over from the old one.
             timeout: seconds for connecting, and for each call that does not say otherwise.
             dram, nvme, cold, cold_cap, durability, threads: of `local:` alone; a quarter of the
             memory, three quarters of the free disk, no cold directory, three quarters of its free
             disk, "none" and one thread per core unless given. A store that has put rows into a
             cold directory is opened with that directory ever after.
             scrub_rate: of `local:` alone; bytes a second that are read and checked in the
             background. None: not at all, for most such stores are not open for long.
             token: what the operator of the servers has issued, if they ask for one.
             tls: encrypts TCP connections: True trusts the authorities of the system, a path those
             of that PEM file; or a dict of ca, cert and key (the client's own) and server_name.
             wire_dtype: how rows and gradients travel: "float32", or rounded to the nearest
             "bfloat16" or "float16" at half the bytes. Results are float32, the server computes in
             float32, `assign` stays exact. What float16 does not reach (65504) is refused.
             mode: "async": what this client pushes is applied when it comes. "sync": `workers`
             clients, each with a rank of its own, make every `apply_gradients` together, so that
             they train as one: gradients are summed in the order of ranks and applied once, when
             all have pushed. Each makes the same pushes in the same order, with batches of its own
             (an empty one, if it has none). One that is lost leaves the others with a
             DeadlineError; they push again, and it comes back by its client_id.
             staleness: how many pushes a worker may be ahead of the slowest. 0: each waits for all.
             Else a push returns at once, and what went wrong is raised by one of the next, or by
             `close`; reads may then not see so many of the last pushes, also of this client.
    Raises:  ConfigError for the URL or a setting, UnavailableError when no server answers,
             AuthError when one refuses the token or the certificate, or shows one not trusted.
    """
    own = {"dram": dram, "nvme": nvme, "cold": cold, "cold_cap": cold_cap,
           "durability": durability, "threads": threads, "scrub_rate": scrub_rate}  # fmt: skip
    shown = credentials(token, tls)
    worker = worker_of(mode, workers, rank, staleness)
    addresses = _checked(url, client_id, timeout, own, shown, wire_dtype, worker)
    if addresses is None:
        return ParameterServer(_open_local(url, client_id, own), url)
    # The wire needs pycapnp, which a store in this process does not.
    from hybridps.client.remote import RemoteTransport  # noqa: PLC0415

    transport = RemoteTransport(addresses, client_id, timeout, shown, wire_dtype, worker)
    try:
        transport.connect()
    except BaseException:
        transport.close()
        raise
    return ParameterServer(transport, url)


def connect_async(
    url: str,
    *,
    client_id: str | None = None,
    timeout: float = 10.0,
    dram: int | str | None = None,
    nvme: int | str | None = None,
    cold: str | os.PathLike[str] | None = None,
    cold_cap: int | str | None = None,
    durability: str | None = None,
    threads: int | None = None,
    scrub_rate: int | str | None = None,
    token: str | None = None,
    tls: Tls = None,
    wire_dtype: str = "float32",
    mode: str = "async",
    workers: int | None = None,
    rank: int | None = None,
    staleness: int | None = None,
) -> aio.Connecting:
    """The asyncio client of `url`; see `hybridps.connect`. Await it, or use `async with`."""
    own = {"dram": dram, "nvme": nvme, "cold": cold, "cold_cap": cold_cap,
           "durability": durability, "threads": threads, "scrub_rate": scrub_rate}  # fmt: skip

    async def opening() -> aio.ParameterServer:
        shown = credentials(token, tls)
        worker = worker_of(mode, workers, rank, staleness)
        opened = await _open_async(url, client_id, timeout, own, shown, wire_dtype, worker)
        return aio.ParameterServer(opened, url)

    return aio.Connecting(opening)


async def _open_async(
    url: str,
    client_id: str | None,
    timeout: float,
    own: Mapping[str, Any],
    shown: Credentials,
    wire_dtype: str,
    worker: Worker | None,
) -> aio.Transport:
    addresses = _checked(url, client_id, timeout, own, shown, wire_dtype, worker)
    if addresses is None:
        leave.handle_signals()  # The thread that opens it may not.
        opened = await asyncio.to_thread(_open_local, url, client_id, own)
        return aio.ThreadedTransport(opened, timeout)
    from hybridps.client.streams import StreamTransport  # noqa: PLC0415 - as above

    transport = StreamTransport(addresses, client_id, timeout, shown, wire_dtype, worker)
    await transport.connect()
    return transport


def _checked(
    url: str,
    client_id: str | None,
    timeout: float,
    own: Mapping[str, Any],
    shown: Credentials,
    wire_dtype: str,
    worker: Worker | None,
) -> list[Address] | None:
    check_settings(client_id, timeout, wire_dtype)
    addresses = parse_servers(url)
    if addresses is not None:
        refuse_local_settings(url, own)
    elif wire_dtype != "float32":
        raise ConfigError(f"wire_dtype= belongs to servers, url is {url!r}; leave it out")
    elif worker is not None:
        raise ConfigError(f'mode="sync" belongs to servers, url is {url!r}; leave it out')
    elif shown != NOBODY:
        raise ConfigError(f"token= and tls= belong to servers, url is {url!r}; leave them out")
    if shown.tls is not None and any(address.port is None for address in addresses or ()):
        raise ConfigError(f"tls= belongs to hps:// URLs, url is {url!r}; leave it out")
    return addresses


def _open_local(url: str, client_id: str | None, own: Mapping[str, Any]) -> LocalTransport:
    settings = local_settings(url, **own)
    store = _core.Store(
        settings.path,
        dram=settings.dram,
        nvme=settings.nvme,
        cold=settings.cold,
        durability=settings.durability,
        threads=settings.threads,
        scrub_rate=settings.scrub_rate,
    )
    return LocalTransport(store, settings.path, client_id)
