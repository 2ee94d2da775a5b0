"""`hybridps token create`: a new token, and the lines that make it valid on a server."""

import argparse
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from hybridps.security.rights import Right
from hybridps.security.tokens import create

_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="hybridps token",
        description="Tokens of a server: prints, never writes. The token is shown this once.",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    maker = actions.add_parser("create", help="a new token and its entry of the token file")
    maker.add_argument("name", type=_name, help="for logs and errors; two may have one name")
    rights = [right.word for right in Right]
    maker.add_argument("--verbs", choices=rights, default=Right.READ.word, help="read unless given")
    maker.add_argument(
        "--tables", nargs="+", default=["*"], help="names or patterns, all if absent"
    )
    maker.add_argument("--expires", type=_after, help="90d, 12h or 30m from now; never if absent")
    maker.add_argument("--json", action="store_true", help="one JSON object")
    flags = parser.parse_args(list(arguments))
    token, entry = create(flags.name, Right[flags.verbs.upper()], flags.tables, flags.expires)
    if flags.json:
        print(json.dumps({"token": token, "entry": entry}))
    else:
        print(f"token, for the client and shown only now:\n\n{token}\n")
        print(f"entry, for the file that --token-file of the server names:\n\n{entry}", end="")
    return 0


def _name(text: str) -> str:
    if not re.fullmatch(r"[\w.@-]{1,64}", text):
        raise argparse.ArgumentTypeError("give 1 to 64 letters, digits or any of _ . @ -")
    return text


def _after(text: str) -> datetime:
    match = re.fullmatch(r"(\d{1,6})([dhm])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from now; give 90d, 12h or 30m")
    return datetime.now(UTC) + timedelta(**{_UNITS[match[2]]: int(match[1])})
