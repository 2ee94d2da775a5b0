"""Goal: what `make wheel` built works where nothing but a Python is. Method: a bare environment of
each Python on this machine and of old and new NumPy, the wheel in it, a new user's first hour."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from itertools import chain
from pathlib import Path

import pytest

WHEELS = Path(os.environ.get("HYBRIDPS_WHEELS", ""))
FIRST_HOUR = Path(__file__).with_name("first_hour.py")
VERSIONS = ("3.11", "3.12", "3.13")
pytestmark = pytest.mark.skipif(
    "HYBRIDPS_WHEELS" not in os.environ, reason="HYBRIDPS_WHEELS names no wheels: make test-wheel"
)


def interpreter(version: str) -> str | None:
    """A Python of that version: on the path, or one that pyenv keeps."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    kept = sorted(root.glob(f"versions/{version}.*/bin/python3"))
    for program in chain(filter(None, [shutil.which(f"python{version}")]), map(str, kept)):
        asked = [program, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)
        if told.stdout.strip() == version:
            return program
    return None


def wheel(name: str) -> Path:
    found = list(WHEELS.glob(f"{name}-*.whl"))
    assert len(found) == 1, f"of {name} in {WHEELS}: {found}"
    return found[0]


class Bare:
    """A new environment, and what runs in it: outside the checkout, without its settings."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder = folder
        self.python = folder / "venv/bin/python"
        subprocess.run([program, "-m", "venv", folder / "venv"], check=True)

    def install(self, *requirements: str | Path) -> None:
        pip = [self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *requirements], check=True, cwd=self.folder)

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        kept = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
        return subprocess.run(
            [self.python, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=kept,
            check=False,
        )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("numpy", ["1.26", "2"])
def test_a_new_users_first_hour(tmp_path: Path, version: str, numpy: str) -> None:
    program = interpreter(version)
    if program is None:
        pytest.skip(f"python{version} is not installed")
    if (version, numpy) == ("3.13", "1.26"):
        pytest.skip("NumPy 1.26 is not made for Python 3.13")
    bare = Bare(tmp_path, program)
    bare.install(wheel("hybridps"), f"numpy=={numpy}.*")
    ran = bare.run(FIRST_HOUR)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith(f"numpy {numpy}.")


def test_a_client_without_its_framework_says_what_is_missing(tmp_path: Path) -> None:
    bare = Bare(tmp_path, sys.executable)
    bare.install("--no-deps", wheel("hybridps_torch"), wheel("hybridps_tf"))
    bare.install(wheel("hybridps"))
    for package, framework in (("hybridps_torch", "torch"), ("hybridps_tf", "tensorflow|keras")):
        ran = bare.run("-c", f"import {package}")
        assert ran.returncode == 1
        missing = rf"ModuleNotFoundError: No module named '({framework})'"
        assert re.search(missing, ran.stderr), ran.stderr


def test_the_torch_client_trains(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    bare = Bare(tmp_path, sys.executable)
    bare.install(wheel("hybridps"))
    bare.install("--no-deps", wheel("hybridps_torch"))
    site = next((tmp_path / "venv/lib").glob("python3.*/site-packages"))
    (site / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]) + "\n")
    ran = bare.run(
        "-c",
        "import hybridps as hps, hybridps_torch, torch\n"
        "ps = hps.connect('local:store', dram='16MiB', nvme='128MiB')\n"
        "spec = hps.TableSpec('item', 4, optimizer=hps.SGD(1.0), initializer=hps.Zeros())\n"
        "layer = hybridps_torch.Embedding(ps, spec)\n"
        "layer(torch.tensor([1, 2])).sum().backward()\n"
        "assert (ps.table('item').lookup([1, 2]) == -1).all()\n"
        "ps.close()\n",
    )
    assert ran.returncode == 0, ran.stderr


def test_wheels_hold_the_package_and_nothing_else() -> None:
    for name in ("hybridps", "hybridps_torch", "hybridps_tf"):
        with zipfile.ZipFile(wheel(name)) as archive:
            names = archive.namelist()
        tops = {entry.split("/")[0].split("-")[0] for entry in names}
        assert tops == {name}, tops
        assert f"{name}/py.typed" in names
        assert not [entry for entry in names if "__pycache__" in entry or entry.endswith(".rs")]
    assert "abi3" in wheel("hybridps").name
    assert wheel("hybridps_torch").name.endswith("-py3-none-any.whl")
    if sys.platform == "linux":
        assert "manylinux" in wheel("hybridps").name
