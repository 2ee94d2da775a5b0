"""The command `hybridps`: a server, tables of it or of a local store, demonstration, benchmarks.

Exit codes: 0 done; 1 failed, or a scrub found damage; 2 wrong usage, a bad setting or bad input; 3
no such table; 4 the table exists with another shape; 5 no server, or not in time. Errors are one
line on stderr, or with --json one object {"error": ..., "message": ...} there; results go to
stdout.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from hybridps import (
    After,
    AfterSteps,
    BadInputError,
    BelowNorm,
    ConfigError,
    Constant,
    DeadlineError,
    HybridPSError,
    Normal,
    ParameterServer,
    TableMismatchError,
    TableNotFoundError,
    TableSpec,
    TruncatedNormal,
    UnavailableError,
    Uniform,
    Zeros,
    __version__,
    cli_changes,
    cli_checkpoint,
    cli_export,
    cli_token,
    cli_upkeep,
    connect,
    plan,
)
from hybridps._core import Store
from hybridps.admission import parse_admission
from hybridps.expiry import Expiry
from hybridps.optimizers import OPTIMIZERS
from hybridps.sizes import format_size

DEFAULT_URL: Final = "hps://127.0.0.1:7440"
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
_EXIT_CODES: Final[tuple[tuple[type[HybridPSError], int], ...]] = (
    (BadInputError, EXIT_USAGE),
    (ConfigError, EXIT_USAGE),
    (TableNotFoundError, 3),
    (TableMismatchError, 4),
    (UnavailableError, 5),
    (DeadlineError, 5),
)
_OPTIMIZER_SETTINGS: Final = (
    "learning_rate",
    "initial_accumulator",
    "betas",
    "eps",
    "momentum",
    "nesterov",
    "alpha",
    "l1",
    "l2",
    "l21",
    "weight_decay",
    "clip_value",
    "clip_norm",
)
_INITIALIZERS: Final[dict[str, Callable[..., Any]]] = {
    "zeros": Zeros,
    "constant": Constant,
    "uniform": Uniform,
    "normal": Normal,
    "truncated_normal": TruncatedNormal,
}
_BENCHMARKS: Final = Path(__file__).resolve().parent.parent / "benchmarks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # These read their arguments themselves.
    programs = {"demo": _demo, "bench": _bench, "serve": _serve, "top": _top}
    programs["token"] = cli_token.main
    if given and given[0] in programs:
        return programs[given[0]](given[1:])
    flags = _parser().parse_args(given)
    try:
        if flags.command == "plan":
            planned = plan(_spec_of(flags, dram=None), flags.rows, flags.dram)
            told = dataclasses.asdict(planned)
            return _print(json.dumps(told) if flags.json else _show_plan(told))
        if (alone := getattr(flags, "alone", None)) is not None:  # It needs no server.
            told = alone(flags)
            return _print(json.dumps(told) if flags.json else flags.show(told))
        if getattr(flags, "store", None) is not None:
            flags.url = flags.store
        if not flags.may_make_store:
            _check_store(flags.url)
        token, ca = os.environ.get("HYBRIDPS_TOKEN"), os.environ.get("HYBRIDPS_TLS_CA")
        if not flags.url.startswith("hps"):
            token = ca = None
        tls = ca if flags.url.startswith("hps://") else None
        with (
            connect(flags.url, timeout=flags.timeout, token=token, tls=tls) as ps,
            warnings.catch_warnings(),
        ):
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", UserWarning)
            result = flags.run(ps, flags)
            if result is None:  # It has printed what there was, as it came.
                return 0
    except HybridPSError as error:
        return _fail(error, as_json=flags.json)
    printed = _print(json.dumps(result) if flags.json else flags.show(result))
    is_damaged = flags.command == "scrub" and result["damaged"] > 0
    return EXIT_FAILED if is_damaged else printed


def _print(text: str) -> int:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough; the interpreter flushes once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hybridps",
        description="A hybridps server, its tables, the demonstration, and benchmarks.",
        epilog="exit codes: 0 done, 1 failed or damage found, 2 usage or bad input,"
        " 3 no such table, 4 table of another shape, 5 no server or not in time. Servers that ask"
        " for a token are shown that of HYBRIDPS_TOKEN; HYBRIDPS_TLS_CA names the authorities of"
        " those with TLS.",
    )
    parser.add_argument("--version", action="version", version=f"hybridps {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    table = commands.add_parser("table", help="list, create, export, import and drop tables")
    commands.add_parser("serve", help="run a server; as python -m hybridps.server", add_help=False)
    commands.add_parser("token", help="make a token for a server's token file", add_help=False)
    commands.add_parser("top", help="what servers do now, from their ops ports", add_help=False)
    commands.add_parser("demo", help="train a real click model through a server", add_help=False)
    commands.add_parser("bench", help="run a script of benchmarks/", add_help=False)
    actions = table.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add(actions, "list", _list, _show_list, "the names of all tables")
    create = _add(actions, "create", _create, _show_create, "create a table, or open an equal one")
    stats = _add(actions, "stats", _stats, _show_stats, "counters of a table, or of all together")
    drop = _add(actions, "drop", _drop, _show_drop, "drop a table and all its rows")
    expire = _add(actions, "expire", _expire, _show_expire,
                  "remove the rows that are due by the table's expiry, now")  # fmt: skip
    expire.add_argument("name", help="table")
    expire.add_argument("--now", type=float, help="Unix seconds to reckon ages with")
    expire.set_defaults(timeout=60.0)
    stats.add_argument("name", nargs="?", help="table; all tables together when left out")
    drop.add_argument("name", help="table")
    create.add_argument("name", help="table")
    create.add_argument("--dram", help='cap in DRAM, such as "8GiB"')
    create.add_argument("--nvme", help="cap on NVMe")
    _add_spec(create)
    expiry = create.add_mutually_exclusive_group()
    expiry.add_argument("--expire-after", metavar="AGE", help='not seen for so long, as in "30d"')
    expiry.add_argument(
        "--expire-after-steps", type=int, metavar="N", help="not pushed for so long"
    )
    expiry.add_argument("--expire-below-norm", type=float, metavar="X", help="rows of such a norm")
    create.set_defaults(may_make_store=True)
    cli_export.add_export(_add(actions, "export", cli_export.export_table, cli_export.show,
                               "write a table to a file"))  # fmt: skip
    cli_export.add_import(_add(actions, "import", cli_export.import_table, cli_export.show,
                               "set rows of a table from a file"))  # fmt: skip
    scrub = _add(commands, "scrub", cli_upkeep.scrub, cli_upkeep.show_scrub,
                 "read and check all that is on the device; mend what can be")  # fmt: skip
    cli_upkeep.add_scrub(scrub)
    scrub.set_defaults(timeout=60.0)
    inspect = _add(commands, "inspect", cli_upkeep.inspect, cli_upkeep.show_inspect,
                   "where a row is, and what is known of it")  # fmt: skip
    cli_upkeep.add_inspect(inspect)
    changes = _add(commands, "changes", cli_changes.changes, str,
                   "what changes in a table, as JSON lines")  # fmt: skip
    cli_changes.add_changes(changes)
    _add_plan(commands)
    _add_checkpoint(commands)
    return parser


def _add_plan(commands: Any) -> None:
    text = "how much a table will take; needs no server"
    parser: argparse.ArgumentParser = commands.add_parser("plan", help=text, description=text)
    parser.add_argument("--rows", type=int, required=True, help="how many there will be")
    parser.add_argument("--dram", help='budget, such as "8GiB": how many rows it keeps in memory')
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    _add_spec(parser)
    parser.set_defaults(name="table", nvme=None)


def _add_checkpoint(commands: Any) -> None:
    checkpoint = commands.add_parser("checkpoint", help="make, list, check, restore checkpoints")
    actions = checkpoint.add_subparsers(dest="action", required=True, metavar="ACTION")
    own = cli_checkpoint
    create = _add(actions, "create", own.create, own.show_one,
                  "write all tables as of one moment")  # fmt: skip
    own.add_create(create)
    restore = _add(actions, "restore", own.restore, own.show_restored,
                   "replace tables by those of a checkpoint")  # fmt: skip
    own.add_restore(restore)
    restore.set_defaults(may_make_store=True)
    for name, does, show, what, add in (
        ("list", own.list_all, own.show_list, "the checkpoints of a directory", own.add_list),
        ("verify", own.verify, own.show_verified, "read all and check it", own.add_verify),
        ("prune", own.prune, own.show_pruned, "delete old ones", own.add_prune),
    ):
        action = _add(actions, name, does, show, what)
        add(action)
        action.set_defaults(alone=does)


def _add(
    actions: Any, name: str, run: Callable[..., Any], show: Callable[[Any], str], text: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(name, help=text, description=text)
    url = os.environ.get("HYBRIDPS_URL", DEFAULT_URL)
    parser.add_argument("--url", default=url, help="server, or local:PATH (%(default)s)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds (%(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    parser.set_defaults(run=run, show=show, may_make_store=False)
    return parser


def _check_store(url: str) -> None:
    """A command that looks makes no empty store where a path was mistyped."""
    path = url.removeprefix("local:")
    if path != url and path and not Store.exists(path):
        raise ConfigError(
            f"there is no store at {path!r}; correct --url, or make one with hybridps table create"
        )


def _add_spec(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dim", type=int, required=True, help="columns of a row")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adagrad")
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--initial-accumulator", type=float, help="of Adagrad's and FTRL's family")
    parser.add_argument("--betas", type=float, nargs=2, help="of Adam's family")
    parser.add_argument("--eps", type=float, help="of Adagrad's and Adam's family, rms_prop")
    parser.add_argument("--momentum", type=float, help="momentum")
    parser.add_argument("--nesterov", action="store_const", const=True, help="momentum")
    parser.add_argument("--alpha", type=float, help="rms_prop")
    for name in ("l1", "l2", "l21"):
        parser.add_argument(f"--{name}", type=float, help="of FTRL's family, group_adam")
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--clip-value", type=float, help="each number of a gradient")
    parser.add_argument("--clip-norm", type=float, help="the gradient of a key")
    parser.add_argument("--initializer", choices=_INITIALIZERS, default="normal")
    parser.add_argument("--value", type=float, help="constant")
    parser.add_argument("--low", type=float, help="uniform")
    parser.add_argument("--high", type=float, help="uniform")
    parser.add_argument("--mean", type=float, help="normal, truncated_normal")
    parser.add_argument("--std", type=float, help="normal, truncated_normal")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--admission",
        metavar="RULE",
        help="which keys get a row: min_count:N or probability:P, with :CAPACITY for other than"
        " 10,000,000 keys that are counted before; all keys when left out",
    )


def _list(ps: ParameterServer, _flags: argparse.Namespace) -> list[str]:
    return ps.tables()


def _show_list(names: list[str]) -> str:
    return "\n".join(names) if names else "no tables"


def _create(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, Any]:
    spec = _spec_of(flags, dram=flags.dram)
    spec_json: dict[str, Any] = json.loads(ps.create_table(spec).spec.to_json())
    return spec_json


def _show_plan(planned: dict[str, int | None]) -> str:
    width = max(map(len, planned))
    lines = []
    for name, value in planned.items():
        if value is not None:
            shown = str(value) if name.startswith("rows") else f"{value} ({format_size(value)})"
            lines.append(f"{name:<{width}}  {shown}")
    return "\n".join(lines)


def _spec_of(flags: argparse.Namespace, dram: str | None) -> TableSpec:
    return TableSpec(
        name=flags.name,
        dim=flags.dim,
        optimizer=_make(
            "optimizer",
            OPTIMIZERS[flags.optimizer],
            flags,
            _OPTIMIZER_SETTINGS,
        ),
        initializer=_make(
            "initializer",
            _INITIALIZERS[flags.initializer],
            flags,
            ("value", "low", "high", "mean", "std"),
        ),
        seed=flags.seed,
        admission=None if flags.admission is None else parse_admission(flags.admission),
        dram=dram,
        nvme=flags.nvme,
        expiry=_expiry_of(flags),
    )


def _expiry_of(flags: argparse.Namespace) -> Expiry | None:
    """Of `create`; `plan` asks for none."""
    rules: dict[str, Callable[..., Expiry]] = {
        "expire_after": After,
        "expire_after_steps": AfterSteps,
        "expire_below_norm": BelowNorm,
    }
    named = {name: getattr(flags, name, None) for name in rules}
    made = [rules[name](value) for name, value in named.items() if value is not None]
    return made[0] if made else None


def _make(
    what: str, cls: Callable[..., Any], flags: argparse.Namespace, names: Sequence[str]
) -> Any:
    settings = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    try:
        return cls(**settings)
    except TypeError as error:
        chosen = getattr(flags, what)
        reason = str(error).partition(") ")[2] or str(error)
        raise BadInputError(f"{what} {chosen} {reason}; see hybridps table create --help") from None


def _show_create(spec: dict[str, Any]) -> str:
    kind = spec["optimizer"]["kind"]
    return f"table {spec['name']}: dim {spec['dim']}, {kind}, learning rate {spec['learning_rate']}"


def _stats(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, int]:
    return ps.stats() if flags.name is None else ps.table(flags.name).stats()


def _show_stats(stats: dict[str, int]) -> str:
    width = max(map(len, stats))
    return "\n".join(f"{name:<{width}}  {_show_count(name, n)}" for name, n in stats.items())


def _show_count(name: str, count: int) -> str:
    is_size = "bytes" in name or name.endswith("_limit")
    return f"{count} ({format_size(count)})" if is_size else str(count)


def _drop(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, str]:
    ps.drop_table(flags.name)
    return {"dropped": flags.name}


def _show_drop(result: dict[str, str]) -> str:
    return f"dropped table {result['dropped']}"


def _expire(ps: ParameterServer, flags: argparse.Namespace) -> dict[str, Any]:
    return {"table": flags.name, "removed": ps.table(flags.name).expire(flags.now)}


def _show_expire(result: dict[str, Any]) -> str:
    return f"removed {result['removed']} rows of table {result['table']}"


def _show_warning(message: Warning | str, *_args: Any, **_kwargs: Any) -> None:
    print(f"hybridps: warning: {message}", file=sys.stderr)


def _fail(error: HybridPSError, *, as_json: bool) -> int:
    codes = (code for cls, code in _EXIT_CODES if isinstance(error, cls))
    code = next(codes, EXIT_FAILED)
    return _refuse(code, type(error).__name__, str(error), as_json=as_json)


def _refuse(code: int, name: str, text: str, *, as_json: bool) -> int:
    told = json.dumps({"error": name, "message": text}) if as_json else f"hybridps: {text}"
    print(told, file=sys.stderr)
    return code


def _serve(arguments: Sequence[str]) -> int:
    # The wire and the ops port come with the server alone.
    from hybridps.server.__main__ import main as serve  # noqa: PLC0415

    return serve(arguments)


def _top(arguments: Sequence[str]) -> int:
    # It reads what the server's own page reads.
    from hybridps.cli_top import main as top  # noqa: PLC0415

    return top(arguments)


def _demo(arguments: Sequence[str]) -> int:
    # torch and the data come with the demonstration alone.
    from hybridps.demo.command import main as demo  # noqa: PLC0415

    return demo(arguments)


def _bench(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    words = [word for word in arguments if word != "--json"]
    scripts = sorted(path.stem for path in _BENCHMARKS.glob("*.py") if path.stem != "yardstick")
    if not scripts:
        text = f"no scripts in {_BENCHMARKS}; use a checkout"
        return _refuse(EXIT_FAILED, "ConfigError", text, as_json=as_json)
    usage = f"usage: hybridps bench {{{','.join(scripts)}}} [OPTION...] [--json]"
    if words in (["-h"], ["--help"]):
        return _print(usage)
    if not words or words[0] not in scripts:
        return _refuse(EXIT_USAGE, "BadInputError", usage, as_json=as_json)
    return _run_script(_BENCHMARKS / f"{words[0]}.py", words[1:], as_json=as_json)


def _run_script(script: Path, arguments: Sequence[str], *, as_json: bool) -> int:
    """As `python script ...`; with `as_json` the results alone, which scripts print a line each."""
    command = [sys.executable, str(script), *arguments]
    captured = subprocess.PIPE if as_json else None
    done = subprocess.run(command, stdout=captured, text=True, check=False)  # noqa: S603 - ours
    if as_json and done.returncode == 0:
        results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return _print(json.dumps(results))
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
