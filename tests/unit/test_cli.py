"""Goal: the command line's output and exact exit codes. Method: run it on a local store, in process
where that shows the same, and once as a process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps import cli, connect
from hybridps._core import Store


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """One store for all commands of a test, as a server would be."""
    url = f"local:{tmp_path / 'store'}"
    ps = connect(url, dram="8MiB", nvme="64MiB")
    monkeypatch.setattr(ps, "close", lambda: None)
    assert Store.exists(url.removeprefix("local:"))
    monkeypatch.setattr(cli, "connect", lambda *_args, **_settings: ps)
    return url


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = cli.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


@pytest.mark.usefixtures("url")
def test_a_table_comes_and_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "table", "list")[:2] == (0, [])
    create = ["table", "create", "item", "--dim", "4", "--optimizer", "adam", "--betas", "0.8"]
    code, spec, _ = run(capsys, *create, "0.9", "--initializer", "uniform", "--low", "0",
                        "--high", "1", "--dram", "2MiB", "--learning-rate", "0.5")  # fmt: skip
    assert code == 0
    assert spec["optimizer"]["beta1"] == 0.8
    assert spec["dram"] == 2 << 20
    assert run(capsys, "table", "list")[:2] == (0, ["item"])
    assert run(capsys, "table", "stats", "item")[1]["keys"] == 0
    assert run(capsys, "table", "stats")[1]["tables"] == 1
    assert cli.main(["table", "stats", "item"]) == 0
    assert "dram_bytes" in capsys.readouterr().out
    assert run(capsys, "table", "drop", "item")[:2] == (0, {"dropped": "item"})
    assert cli.main(["table", "list"]) == 0
    assert capsys.readouterr().out == "no tables\n"


@pytest.mark.usefixtures("url")
def test_a_table_goes_to_a_file_and_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = str(tmp_path / "item.npz")
    assert cli.main(["table", "create", "item", "--dim", "4"]) == 0
    ps = cli.connect("")
    ps.table("item").lookup_or_insert(range(10))
    capsys.readouterr()
    code, moved, _ = run(capsys, "table", "export", "item", path, "--slots")
    assert (code, moved["table"], moved["rows"], moved["path"]) == (0, "item", 10, path)
    assert cli.main(["table", "create", "copy", "--dim", "4", "--optimizer", "sgd"]) == 0
    capsys.readouterr()
    assert run(capsys, "table", "import", "copy", path)[0] == 2
    assert run(capsys, "table", "import", "copy", path, "--no-slots")[1]["rows"] == 10
    assert (ps.table("copy").lookup(range(10)) == ps.table("item").lookup(range(10))).all()
    assert cli.main(["table", "export", "item", path]) == 0
    assert capsys.readouterr().out.startswith(f"item: 10 rows, {path}, ")
    assert run(capsys, "table", "export", "item", str(tmp_path / "no" / "item.npz"))[0] == 2


@pytest.mark.usefixtures("url")
def test_rows_of_a_table_expire(capsys: pytest.CaptureFixture[str]) -> None:
    create = ["table", "create", "item", "--dim", "4", "--optimizer", "sgd"]
    code, spec, _ = run(capsys, *create, "--expire-after", "2w")
    assert (code, spec["expiry"]) == (0, {"kind": "after", "seconds": 14 * 86_400})
    cli.connect("").table("item").assign([1, 2], np.ones((2, 4), np.float32))
    expire = ["table", "expire", "item"]
    assert run(capsys, *expire)[:2] == (0, {"table": "item", "removed": 0})
    assert run(capsys, *expire, "--now", "1e10")[:2] == (0, {"table": "item", "removed": 2})
    assert cli.main(expire) == 0
    assert capsys.readouterr().out == "removed 0 rows of table item\n"
    code, _, err = run(capsys, *expire, "--now", "-5")
    assert code == 2
    assert "now is -5" in err
    for flags, kind in (
        (["--expire-after-steps", "7"], {"kind": "after_steps", "steps": 7}),
        (["--expire-below-norm", "0.5"], {"kind": "below_norm", "norm": 0.5}),
    ):
        run(capsys, "table", "drop", "item")
        assert run(capsys, *create, *flags)[1]["expiry"] == kind
    code, _, err = run(capsys, *create, "--expire-after", "soon")
    assert code == 2
    assert "age is 'soon'" in err


@pytest.mark.usefixtures("url")
def test_an_admission_is_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    for n, (word, rule) in enumerate(
        [
            ("min_count:3", hps.MinCount(3)),
            ("min_count:3:5000", hps.MinCount(3, 5000)),
            ("probability:0.25", hps.Probability(0.25)),
        ]
    ):
        create = ["table", "create", f"t{n}", "--dim", "4", "--admission", word]
        code, spec, _ = run(capsys, *create)
        assert (code, spec["admission"]) == (0, rule.options())
    for word in ("3", "min_count", "min_count:x", "min_count:3:4:5", "often:3", "probability:0.1:"):
        create = ["table", "create", "bad", "--dim", "4", "--admission", word]
        code, _, err = run(capsys, *create)
        assert (code, json.loads(err)["error"]) == (2, "BadInputError")
        assert "give min_count:N or probability:P" in json.loads(err)["message"]
    _, _, err = run(capsys, "table", "create", "bad", "--dim", "4", "--admission", "min_count:0")
    assert json.loads(err)["message"] == "n is 0; give 1 to 65536"
    planned = run(capsys, "plan", "--rows", "10", "--dim", "4", "--admission", "min_count:2")[1]
    assert planned["candidates_bytes"] > 40_000_000


@pytest.mark.usefixtures("url")
def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    create = ["table", "create", "item", "--optimizer", "sgd", "--dim"]
    assert cli.main([*create, "4"]) == 0
    capsys.readouterr()
    for arguments, code, error in (
        (["table", "stats", "absent"], 3, "TableNotFoundError"),
        (["table", "drop", "absent"], 3, "TableNotFoundError"),
        ([*create, "5"], 4, "TableMismatchError"),
        ([*create, "0"], 2, "BadInputError"),
        ([*create, "4", "--eps", "1"], 2, "BadInputError"),
        ([*create, "4", "--initializer", "uniform"], 2, "BadInputError"),
    ):
        found, out, err = run(capsys, *arguments)
        assert (found, out) == (code, None), arguments
        assert json.loads(err)["error"] == error
        assert cli.main(arguments) == code
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("hybridps: ")


@pytest.mark.usefixtures("url")
def test_live_differences_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    create = ["table", "create", "item", "--dim", "4", "--learning-rate"]
    assert cli.main([*create, "1"]) == 0
    capsys.readouterr()
    assert cli.main([*create, "2"]) == 0
    assert "warning: table 'item': learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["table", "list", "--url", "hps://127.0.0.1:1", "--timeout", "0.2"], 5),
        (["table", "list", "--url", "nonsense"], 2),
        (["table", "list", "--timeout", "0"], 2),
    ],
)
def test_without_a_store(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("words", [["list"], ["stats"], ["stats", "item"], ["drop", "item"]])
def test_a_command_that_looks_makes_no_store(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, is_made in ((tmp_path / "absent", False), (tmp_path / "empty", True)):
        if is_made:
            place.mkdir()
        assert cli.main(["table", *words, "--url", f"local:{place}"]) == 2
        (told,) = capsys.readouterr().err.splitlines()
        assert f"no store at {str(place)!r}" in told
        assert place.exists() == is_made
        assert not is_made or not list(place.iterdir())


def test_create_makes_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"local:{tmp_path / 'store'}"
    assert cli.main(["table", "create", "item", "--dim", "4", "--url", url]) == 0
    capsys.readouterr()
    assert run(capsys, "table", "list", "--url", url)[:2] == (0, ["item"])


def test_usage() -> None:
    for arguments in ([], ["table"], ["nonsense"], ["table", "create", "item"], ["bench"]):
        command = [sys.executable, "-m", "hybridps.cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode in ((1, 2) if arguments == ["bench"] else (2,)), arguments
        assert done.stderr
    command = [sys.executable, "-m", "hybridps.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("hybridps 0.")


def test_bench_runs_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.py").write_text("import sys\nprint(sys.argv[1:])\nsys.exit(7)\n")
    (tmp_path / "other.py").write_text("print('for people')\nprint('{\"benchmark\": 1}')\n")
    monkeypatch.setattr(cli, "_BENCHMARKS", tmp_path)
    assert cli.main(["bench", "one", "--quick"]) == 7
    assert capfd.readouterr().out == "['--quick']\n"
    assert run(capfd, "bench", "other") == (0, [{"benchmark": 1}], "")
    assert run(capfd, "bench", "one", "--quick")[:2] == (7, None)
    assert cli.main(["bench", "two"]) == 2
    assert "one" in capfd.readouterr().err
    code, out, err = run(capfd, "bench", "two")
    assert (code, out, json.loads(err)["error"]) == (2, None, "BadInputError")
    assert cli.main(["bench", "--help"]) == 0
