"""Goal: what `hybridps token create` prints is what a server takes. Method: its entry, read as a
token file."""

import json
import time
from pathlib import Path

import pytest

from hybridps import cli
from hybridps.security.rights import Right
from hybridps.security.tokens import read


def test_the_entry_makes_the_token_valid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--verbs", "train", "--tables", "item", "user_*", "--expires", "90d", "--json"]
    assert cli.main(["token", "create", "me", *asked]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["token"] not in made["entry"]
    path = tmp_path / "tokens.toml"
    path.write_text(made["entry"])
    found = read(path).find(made["token"])
    assert found is not None
    assert (found.name, found.right, found.tables) == ("me", Right.TRAIN, ("item", "user_*"))
    assert abs((found.expires_s or 0) - time.time() - 90 * 86400) < 3600
    assert cli.main(["token", "create", "me"]) == 0
    shown = capsys.readouterr().out
    assert 'verbs = "read"' in shown
    assert "expires" not in shown


@pytest.mark.parametrize(
    "arguments",
    [["a b"], ["x", "--verbs", "write"], ["x", "--expires", "soon"], [], ["x", "--expires", "1y"]],
)
def test_bad_usage_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["token", "create", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().out == ""
