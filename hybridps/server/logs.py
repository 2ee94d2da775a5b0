"""Structured logs on stderr: one line an event, JSON for machines or text for people.

An event is a short constant phrase; everything that varies is a field, so that lines can be
grouped. Repeats of one event are limited per window and the number left out is told, so that a
client in a loop cannot fill a disk. Who logs never waits for a reader (`lines`). Never here: keys,
rows or other contents of tables.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from hybridps.server.lines import Lines, writer_to

# Ten lines show a burst's beginning; one window later the count of the rest follows.
REPEATS_MAX = 10
WINDOW_S = 10.0
# Events are constants of this program; foreign ones (asyncio, aiohttp) could vary without end.
EVENTS_REMEMBERED_MAX = 1024
# Who did what: every line of it is written.
AUDIT = "hybridps.audit"
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "fields"}


class Logger:
    """`log.info("connection closed", peer=..., calls=...)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: object) -> None:
        """Logs what only a developer asks for."""
        self._logger.debug("%s", event, extra={"fields": fields})

    def info(self, event: str, **fields: object) -> None:
        """Logs what an operator may want to know."""
        self._logger.info("%s", event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        """Logs what an operator should look at."""
        self._logger.warning("%s", event, extra={"fields": fields})

    def error(self, event: str, **fields: object) -> None:
        """Logs what an operator must look at."""
        self._logger.error("%s", event, extra={"fields": fields})

    def exception(self, event: str, **fields: object) -> None:
        """Logs an error together with the traceback of the exception being handled."""
        self._logger.error("%s", event, extra={"fields": fields}, exc_info=sys.exc_info())


class RepeatFilter(logging.Filter):
    """Lets `REPEATS_MAX` lines of one event through per window and counts the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._windows: dict[tuple[str, int, str], list[float]] = {}  # event -> [start, seen]

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written; the first of a new window tells what the last left out."""
        if record.name == AUDIT:
            return True
        event = (record.name, record.levelno, record.getMessage())
        now = self._clock()
        window = self._windows.get(event)
        if window is None or now - window[0] >= WINDOW_S:
            left_out = int(window[1]) - REPEATS_MAX if window else 0
            if len(self._windows) >= EVENTS_REMEMBERED_MAX:
                self._windows.clear()
            self._windows[event] = [now, 1]
            if left_out > 0:
                record.fields = {**getattr(record, "fields", {}), "repeats_left_out": left_out}
            return True
        window[1] += 1
        return window[1] <= REPEATS_MAX


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, event, then the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.name != "hybridps.server":
            line["logger"] = record.name
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=True)


class TextFormatter(logging.Formatter):
    """`12:30:01.250 info  event  key=value`, and tracebacks as Python prints them."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        time_of_day = _time(record)[11:23]
        pairs = "".join(f"  {k}={_one_line(v)}" for k, v in _fields(record).items())
        event = _one_line(record.getMessage())
        text = f"{time_of_day} {record.levelname.lower():<7} {event}{pairs}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class LineHandler(logging.Handler):
    """Formats where it is logged, writes elsewhere: an event loop that logs waits for no reader."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._lines = Lines(writer_to(stream))

    def emit(self, record: logging.LogRecord) -> None:
        """Hands the line over. Those of the audit are never left out."""
        try:
            left_out = self._lines.take_left_out()
            if left_out:
                self._lines.put(self.format(_of_left_out(left_out)), must_keep=True)
            self._lines.put(self.format(record), must_keep=record.name == AUDIT)
        except Exception:  # noqa: BLE001 - as every handler: logging fails no call
            self.handleError(record)

    def flush(self) -> None:
        """Waits for what was logged to be written, if anybody reads it."""
        self._lines.flush()


def configure(log_format: str, stream: TextIO | None = None) -> None:
    """Sends all logging of this process to stderr (or `stream`) in `json` or `text` form."""
    handler = LineHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(TextFormatter() if log_format == "text" else JsonFormatter())
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("hybridps").setLevel(logging.INFO)
    logging.captureWarnings(True)


def flush() -> None:
    """Waits, though not for ever, until somebody was given what was logged so far."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _of_left_out(count: int) -> logging.LogRecord:
    event = "lines left out: nobody read the log in time"
    record = logging.LogRecord("hybridps.server", logging.WARNING, "", 0, event, (), None)
    record.fields = {"lines": count}
    return record


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields = getattr(record, "fields", None)
    if fields is not None:
        return dict(fields)
    return {k: v for k, v in vars(record).items() if k not in _STANDARD_FIELDS}


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, tz=UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(value: object) -> str:
    text = str(value)
    return text if text.isprintable() else json.dumps(text)
