"""Goal: logs are one parseable line an event and cannot flood. Method: a stream, a hand clock."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from hybridps.server import logs


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


def test_json_lines_hold_time_level_event_and_fields() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logs.Logger("hybridps.server").info("connection closed", peer="127.0.0.1:5", calls=3)
    (line,) = lines(stream)
    event = json.loads(line)
    assert event.pop("time").endswith("Z")
    assert event == {
        "level": "info",
        "event": "connection closed",
        "peer": "127.0.0.1:5",
        "calls": 3,
    }


def test_hostile_fields_stay_on_one_line() -> None:
    for log_format in ("json", "text"):
        stream = io.StringIO()
        logs.configure(log_format, stream)
        logs.Logger("hybridps.server").warning("bad name", name="a\nb\x1b[31m\u2028")
        (line,) = stream.getvalue().split("\n")[:-1]
        assert line.isprintable()
        assert "\x1b" not in line


def test_exceptions_carry_their_traceback() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    try:
        int("cause")
    except ValueError:
        logs.Logger("hybridps.server").exception("call failed", verb="stats")
    (line,) = lines(stream)
    assert "ValueError: invalid literal" in json.loads(line)["traceback"]


def test_foreign_logs_and_warnings_take_the_same_form() -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    logging.getLogger("asyncio").error("Task was destroyed %s", "x", extra={"task": 7})
    event = json.loads(lines(stream)[0])
    assert (event["logger"], event["event"], event["task"]) == (
        "asyncio",
        "Task was destroyed x",
        7,
    )
    logging.getLogger("aiohttp").info("chatter")
    assert len(lines(stream)) == 1


def test_text_reads_in_columns() -> None:
    stream = io.StringIO()
    logs.configure("text", stream)
    logs.Logger("hybridps.server").info("ready", tables=2)
    (line,) = lines(stream)
    assert line.endswith("info    ready  tables=2")


def test_repeats_are_limited_per_window_and_counted() -> None:
    now = 0.0
    repeats = logs.RepeatFilter(lambda: now)

    def record(event: str) -> logging.LogRecord:
        return logging.LogRecord("hybridps.server", logging.INFO, "", 0, event, (), None)

    assert sum(repeats.filter(record("refused")) for _ in range(25)) == logs.REPEATS_MAX
    assert repeats.filter(record("another event"))
    now = logs.WINDOW_S
    first = record("refused")
    assert repeats.filter(first)
    assert first.fields == {"repeats_left_out": 25 - logs.REPEATS_MAX}
    now = 2 * logs.WINDOW_S
    second = record("refused")
    assert repeats.filter(second)
    assert not hasattr(second, "fields")


def test_the_filter_remembers_a_bounded_number_of_events() -> None:
    repeats = logs.RepeatFilter(lambda: 0.0)
    for number in range(3 * logs.EVENTS_REMEMBERED_MAX):
        repeats.filter(logging.LogRecord("x", logging.INFO, "", 0, f"event {number}", (), None))
    assert len(repeats._windows) <= logs.EVENTS_REMEMBERED_MAX
