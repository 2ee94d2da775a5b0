"""`python -m hybridps.server`: flags to settings to a serving process, and its exit codes.

0: stopped as asked, everything flushed. 1: could not start, could not stop cleanly, or the store
failed and `restart_on_failure` is set, so that a supervisor starts the process anew. 2: bad
configuration. Each of the last two with one line on stderr. A second SIGTERM or SIGINT ends the
process at once, with 128 + its number, and no harm: that is a crash, and crashes are safe.
"""

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

from hybridps import _core
from hybridps.config import ServerConfig, load
from hybridps.errors import ConfigError, HybridPSError
from hybridps.replica.follower import Followed
from hybridps.replica.service import followed_of
from hybridps.server import logs
from hybridps.server.guard import Guard
from hybridps.server.server import Server
from hybridps.server.sockets import StartError

LoopFactory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]

log = logs.Logger("hybridps.server")


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until a signal; returns the exit code."""
    try:
        config = load(sys.argv[1:] if argv is None else argv)
        loop_name, loop_factory = choose_loop(config.loop)
        guard = Guard(config)
        followed = followed_of(config)
    except ConfigError as error:
        return _fail(2, str(error))
    logs.configure(config.log_format)
    _core.tune_allocator()
    _raise_file_limit(config.connections_max)
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(serve(config, guard, loop_name, followed))
    except (StartError, HybridPSError) as error:
        return _fail(1, str(error))
    return 0


async def serve(
    config: ServerConfig, guard: Guard, loop_name: str, followed: Followed | None = None
) -> None:
    """One server's life: start, say ready, wait for a signal, drain."""
    stop = _stop_on_signals()
    server = Server(config, guard, loop_name, followed)
    try:
        await server.start()
        # Who reads that it is ready finds all about it in the log.
        await asyncio.to_thread(logs.flush)
        if not stop.is_set():
            print(server.ready_line(), flush=True)  # noqa: T201 - the contract of stdout
        await _first(stop, server.failed if config.restart_on_failure else None)
    finally:
        await server.stop()
    if server.failed.is_set():
        raise StartError("the store failed; it is opened again when the server is started anew")


async def _first(*events: asyncio.Event | None) -> None:
    """Waits for any of the events."""
    waits = [asyncio.create_task(event.wait()) for event in events if event is not None]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def choose_loop(name: str) -> tuple[str, LoopFactory]:
    """The event loop of that setting, and its name.

    Raises: ConfigError when uvloop is asked for and not installed.
    """
    if name != "asyncio":
        try:
            import uvloop  # noqa: PLC0415 - optional: absent on some platforms
        except ImportError:
            if name == "uvloop":
                raise ConfigError(
                    "--loop is 'uvloop', which is not installed; install it, or give auto"
                ) from None
        else:
            return "uvloop", uvloop.new_event_loop
    return "asyncio", asyncio.new_event_loop


def _stop_on_signals() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def _raise_file_limit(connections_max: int) -> None:
    """A connection is a descriptor, or two once it was sent a large reply; the usual soft limit of
    1024 is far below our own.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections_max + 1024  # Segments, libraries, ops connections.
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _fail(code: int, text: str) -> int:
    line = " ".join(text.split())
    print(f"hybridps: {line}", file=sys.stderr, flush=True)  # noqa: T201 - for people, not a log
    return code


if __name__ == "__main__":
    sys.exit(main())
