"""Goal: what the READMEs show works as it stands there. Method: their code blocks and commands are
run as pasted, but that a free port and a directory of the test stand for those that are named."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.server import ServerProcess, environment

import hybridps as hps
from hybridps.config import SETTINGS, ServerConfig, flag_of, load
from hybridps.security.tokens import read

ROOT = Path(__file__).parents[2]
PAGES = (
    "README.md",
    "clients/tensorflow/README.md",
    "clients/torch/README.md",
    "schemas/README.md",
)
RUN_S = 120


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


PROGRAMS = [(page, number) for page in PAGES for number in range(len(blocks(page, "python")))]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("readme") / "d", dram="64MiB") as server:
        with hps.connect(server.url) as ps:
            ps.create_table(hps.TableSpec("item", 16, hps.Adagrad(0.05)))
        yield server


def run(command: list[str], where: Path, **environ: str) -> str:
    done = subprocess.run(
        command,
        cwd=where,
        env=environment(**environ),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_page_shows_a_program() -> None:
    assert {page for page, _ in PROGRAMS} == set(PAGES)


@pytest.mark.parametrize(("page", "number"), PROGRAMS)
def test_a_program_runs_as_pasted(
    tmp_path: Path, server: ServerProcess, page: str, number: int
) -> None:
    program = blocks(page, "python")[number]
    if "torch" in program:
        pytest.importorskip("torch")
        pytest.importorskip("hybridps_torch")
    if "keras" in program and not (find_spec("keras") and find_spec("hybridps_tf")):
        pytest.skip("keras or hybridps_tf is not installed")
    host, port = server.address
    program = program.replace("127.0.0.1:7440", f"{host}:{port}")
    program = program.replace('"127.0.0.1", 7440', f'"{host}", {port}')
    (tmp_path / "pasted.py").write_text(program)
    (tmp_path / "schemas").symlink_to(ROOT / "schemas")
    said = run([sys.executable, "-W", "error::UserWarning", "pasted.py"], tmp_path)
    assert bool(said) == ("print(" in program)


def test_the_commands_of_a_shell_run(tmp_path: Path, server: ServerProcess) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"`hybridps (table [^`]+)`", text)
    assert [command.split()[1] for command in commands] == ["list", "create", "stats", "drop"]
    for command in commands:
        words = [sys.executable, "-m", "hybridps.cli", *shlex.split(command)]
        assert run(words, tmp_path, HYBRIDPS_URL=server.url)


def test_the_command_of_a_server_serves(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^ {4}python -m hybridps\.server (.* --data .*)$", text, re.MULTILINE)
    words = shlex.split(command.replace("./", f"{tmp_path}{os.sep}"))
    with ServerProcess(tmp_path / "tables", *words) as server:
        assert server.ready["dram"] in command
        assert server.stop() == 0
    assert (tmp_path / "tables").is_dir()


def test_the_file_of_settings_is_read_and_shows_the_defaults(tmp_path: Path) -> None:
    text, tokens = blocks("README.md", "toml")
    file = tmp_path / "server.toml"
    file.write_text(text)
    shown, plain = load(["--config", str(file)], {}), load([], {})
    chosen = {"data", "dram_bytes", "nvme_bytes"}
    for name in set(ServerConfig.__dataclass_fields__) - chosen:
        assert getattr(shown, name) == getattr(plain, name), name
    without_flag = {setting.name for setting in SETTINGS if setting.metavar is None}
    assert without_flag <= set(re.findall(r"^(\w+) =", text, re.MULTILINE))
    token_file = tmp_path / "tokens.toml"
    token_file.write_text(tokens)
    assert len(read(token_file)) == 1


def test_the_table_of_flags_has_every_flag() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(--[\w-]+)[ `]", text, re.MULTILINE)
    flags = [flag_of(setting.name) for setting in SETTINGS if setting.metavar is not None]
    assert shown == [*flags, "--config"]
