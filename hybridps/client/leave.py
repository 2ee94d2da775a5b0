"""Stores in this process are closed when the program ends, however it ends but by a crash.

A store of durability "none" has its rows in memory until it is closed. The interpreter does not
always destroy what a program leaves behind (a daemon thread may hold it), and a signal that nobody
handles ends the process at once: so the end is watched for. A handler of the program's own, and
asyncio's, come first: whoever sets one ends the program in order.
"""

import atexit
import contextlib
import os
import signal
import threading
import weakref
from types import FrameType
from typing import Final

from hybridps import _core
from hybridps.errors import HybridPSError

# What asks a program to end: `kill`, a container's stop, a terminal that went away.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)

# The open stores of each process: a forked child has its parent's in memory, and not their threads.
# A plain dict, each access of which is whole: a signal may come in the middle of any line here.
_OPEN: Final[dict[int, tuple[int, weakref.ref[_core.Store]]]] = {}


def watch(store: _core.Store) -> None:
    """Closes the store when the program ends, if it still is open then."""
    key = id(store)
    _OPEN[key] = (os.getpid(), weakref.ref(store, lambda _: _OPEN.pop(key, None)))
    handle_signals()


def handle_signals() -> None:
    """Takes the signals over that would end the process; done by the main thread or by nobody."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _on_signal)


def _close_all() -> None:
    # The engine's own close: it waits for calls that run and takes no lock of Python's, which the
    # interrupted thread might hold.
    for process, reference in list(_OPEN.values()):
        store = reference()
        if store is not None and process == os.getpid():
            with contextlib.suppress(HybridPSError):  # It failed before; its calls were told.
                store.close()


def _on_signal(number: int, _frame: FrameType | None) -> None:
    """Ends the process by the signal, as if nobody had handled it, once the stores are closed."""
    signal.signal(number, signal.SIG_DFL)
    _close_all()
    os.kill(os.getpid(), number)


atexit.register(_close_all)
