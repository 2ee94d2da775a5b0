"""The command `changes`: what changes in a table, as JSON lines for pipelines."""

import argparse
import json
import os
import sys
from typing import Any, Final

from hybridps import Change, ParameterServer

NOW: Final = "now"


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Arguments of `hybridps changes`."""
    parser.add_argument("table", help="table")
    parser.add_argument(
        "--since",
        metavar="CURSOR",
        help=f'"cursor" of a line, to go on behind it; "{NOW}"; all rows if left out',
    )
    parser.add_argument("--follow", action="store_true", help="wait for more, until interrupted")


def changes(ps: ParameterServer, flags: argparse.Namespace) -> None:
    """Prints a line a change, as they come: table, keys, rows, removed, cursor."""
    since = ps.cursor() if flags.since == NOW else flags.since
    try:
        for change in ps.changes(since, [flags.table], follow=flags.follow):
            print(json.dumps(_told(change)), flush=True)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; the interpreter flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        # Who follows ends it so.
        return


def _told(change: Change) -> dict[str, Any]:
    return {
        "table": change.table,
        "keys": change.keys.tolist(),
        "rows": change.rows.tolist(),
        "removed": change.removed.tolist(),
        "cursor": change.cursor,
    }
