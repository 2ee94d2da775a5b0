"""How late a server's event loop is, seen from outside, while something goes on.

Asks `/livez`, which nothing but the loop answers, again and again over one connection. What the
system did not let run (the loop, or this thread) while an answer was awaited is not counted: the
machine may be busy with anything.
"""

import http.client
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from support.server import ServerProcess

EVERY_S = 0.01


class LagProbe:
    """`with LagProbe(server) as lag: ...; lag.longest_s`."""

    def __init__(self, server: ServerProcess) -> None:
        self.longest_s = 0.0
        self.asked = 0
        self._loop = Path(f"/proc/{server.pid}/schedstat")
        self._address = server.ready["ops"].removeprefix("http://")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._probe)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _probe(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=60)
        while not self._stop.wait(EVERY_S):
            delayed_s, began_s = self._delayed_s(), time.monotonic()
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b"ok\n"
            took_s = time.monotonic() - began_s - (self._delayed_s() - delayed_s)
            self.longest_s = max(self.longest_s, took_s)
            self.asked += 1
        connection.close()

    def _delayed_s(self) -> float:
        """Seconds for which the loop's thread, and this one, could have run and did not."""
        own = Path("/proc/thread-self/schedstat")
        fields = [path.read_text(encoding="ascii").split() for path in (self._loop, own)]
        return sum(int(delay) for _, delay, _ in fields) / 1e9
