"""Goal: what `hybridps scrub` and `hybridps inspect` print, and their exit codes. Method: a local
store, of which a byte is flipped; each command opens it as a process of its own would.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridps as hps
from hybridps import cli


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A closed store with one table of three rows."""
    path = tmp_path / "store"
    with hps.connect(f"local:{path}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.create_table(hps.TableSpec("item", 4, hps.SGD(1.0), hps.Zeros()))
        table.assign([3, -1], np.array([[3, 0, 4, 0], [1, 1, 1, 1]], np.float32))
        table.lookup_or_insert(["shoe"])
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any, str]:
    code = cli.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_inspect(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--url", f"local:{store}"]
    code, told, _ = run(capsys, "inspect", "item", "3", *url)
    assert (code, told["key"], told["norm"], told["tier"]) == (0, 3, 5.0, "nvme")
    assert (told["frequency"], told["age_s"] < 600) == (0, True), "an assignment stamps a row"
    assert told["place"] > 0
    assert run(capsys, "inspect", "item", "-1", *url)[1]["key"] == 2**64 - 1
    told = run(capsys, "inspect", "item", "shoe", *url)[1]
    assert (told["key"], told["frequency"]) == (hps.key_of("shoe"), 1)
    assert 0 <= told["age_s"] < 3600
    assert run(capsys, "inspect", "item", "3", "--text", *url)[1]["key"] == hps.key_of("3")
    assert run(capsys, "inspect", "item", "0x3", *url)[1]["norm"] == 5.0
    assert cli.main(["inspect", "item", "3", *url]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (shown["tier"], shown["dirty"]) == ("nvme", "no")
    assert shown["last_seen"] != "never"
    assert cli.main(["inspect", "item", "4", *url]) == 0
    assert capsys.readouterr().out == "key 4 has no row in table item\n"
    assert run(capsys, "inspect", "absent", "4", *url)[0] == 3
    assert run(capsys, "inspect", "item", str(2**64), *url)[0] == 2


def test_scrub(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, told, _ = run(capsys, "scrub", f"local:{store}")
    assert (code, told["records"], told["damaged"], told["found"]) == (0, 3, 0, [])
    assert cli.main(["scrub", "--url", f"local:{store}", "--rate", "1GiB"]) == 0
    assert capsys.readouterr().out.startswith("clean: 3 records, ")
    place = run(capsys, "inspect", "item", "3", "--url", f"local:{store}")[1]["place"]
    log = bytearray((store / "rows.log").read_bytes())
    log[place + 40] ^= 1
    (store / "rows.log").write_bytes(log)
    lost = {"table": "item", "key": 3, "offset": place, "fate": "lost"}
    code, told, _ = run(capsys, "scrub", f"local:{store}")
    assert (code, told["damaged"], told["found"]) == (1, 1, [lost])
    assert cli.main(["scrub", f"local:{store}"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"damaged: table item key 3, byte {place}: lost"
    assert lines[1].startswith("1 damaged: ")
    for wrong in ("0", "fast"):
        assert run(capsys, "scrub", f"local:{store}", "--rate", wrong)[0] == 2
    assert run(capsys, "scrub", f"local:{store / 'absent'}")[0] == 2
    assert run(capsys, "scrub", "hps://127.0.0.1:1", "--timeout", "0.2")[0] == 5
