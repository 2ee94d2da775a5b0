"""Goal: logs are one parseable line an event and cannot flood. Method: a stream, a hand clock."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hybridps.server import lines as lines_module
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
    logging.getLogger().handlers[0].flush()
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
        lines(stream)
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


PROGRAM = """
import asyncio, logging
from hybridps.server import lines, logs

logs.configure("json")

async def main():
    for number in range(3 * lines.WAITING_MAX):
        logging.getLogger("hybridps.server").warning("event %d", number)
        if number % 1000 == 0:
            logging.getLogger(logs.AUDIT).warning("who did what")
            await asyncio.sleep(0)
    print("done", flush=True)
    input()
    logging.getLogger("hybridps.server").warning("read again")

asyncio.run(main())
"""


def test_a_log_that_nobody_reads_holds_up_nobody() -> None:
    """Much more than a pipe holds; lines are left out and told, those of the audit are not."""
    command = [sys.executable, "-c", PROGRAM]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "done\n"
        told = [json.loads(program.stderr.readline()) for _ in range(lines_module.WAITING_MAX)]
        program.stdin.write("\n")
        program.stdin.flush()
        told += [json.loads(line) for line in program.stderr.read().splitlines()]
        assert program.wait(60) == 0
    numbers = [int(e["event"].split()[1]) for e in told if e["event"].startswith("event ")]
    assert numbers == sorted(set(numbers)), "in order, none twice"
    first = lines_module.WAITING_MAX
    assert numbers[:first] == list(range(first)), "the first ones; later ones where there was room"
    audit = 1 + (3 * lines_module.WAITING_MAX - 1) // 1000
    assert sum(event["event"] == "who did what" for event in told) == audit
    assert told[-1]["event"] == "read again"
    left_out = sum(event.get("lines", 0) for event in told)
    assert left_out == 3 * lines_module.WAITING_MAX - len(numbers) > 0


def test_a_program_ends_though_nobody_reads_its_log() -> None:
    program = PROGRAM.replace("    input()\n", "")
    command = [sys.executable, "-c", program]
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=writer, timeout=60, check=True
        )
    finally:
        os.close(writer)
        os.close(reader)
    assert done.stdout == b"done\n"
