"""Lines of a log to where they are read, by a thread of their own: whoever logs never waits.

A terminal that is paused, or a pipe that nobody empties, holds up this thread alone. What it cannot
take is left out and counted, but for lines that must be kept.
"""

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, TextIO

# Of lines that wait: some megabytes, and minutes of an ordinary log.
WAITING_MAX: Final = 8192
# How long the end of the program waits for a reader.
FLUSH_S: Final = 2.0


class Lines:
    """Writes lines in the order in which they came."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        # Reentrant: a signal's handler may log in the middle of `put`.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[str] = deque()
        self._left_out = 0
        self._is_writing = False
        threading.Thread(target=self._run, name="hybridps-log", daemon=True).start()

    def put(self, line: str, *, must_keep: bool = False) -> None:
        """Takes a line, without its end. Never waits for the reader."""
        with self._changed:
            if len(self._waiting) >= WAITING_MAX and not must_keep:
                self._left_out += 1
                return
            self._waiting.append(line)
            self._changed.notify_all()

    def take_left_out(self) -> int:
        """How many lines were left out since this was last asked, once there is room again."""
        with self._changed:
            if len(self._waiting) >= WAITING_MAX:
                return 0
            count, self._left_out = self._left_out, 0
            return count

    def flush(self, within_s: float = FLUSH_S) -> bool:
        """Waits until all is written, but not for ever; whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._is_writing), within_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting)
                line = self._waiting.popleft()
                self._is_writing = True
            self._write(line + "\n")


def writer_to(stream: TextIO) -> Callable[[str], None]:
    """Writes to the stream. To its descriptor, if it has one: a thread that waits inside a Python
    stream would hold its lock while the interpreter ends.
    """
    try:
        descriptor = stream.fileno()
    except OSError:

        def write_text(text: str) -> None:
            stream.write(text)

        return write_text

    def write(text: str) -> None:
        rest = text.encode("utf-8", "backslashreplace")
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError:
            return  # Nobody reads it any more, and there is nowhere to say so.

    return write
