"""Goal: the TensorFlow client passes its tests. Method: they run in a process of their own, because
TensorFlow and torch crash in one, and torch is in this one by now."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_S = 300


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")
@pytest.mark.skipif(find_spec("hybridps_tf") is None, reason="hybridps_tf is not installed")
def test_the_tests_of_the_tensorflow_client():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--tb=short",
            "--show-capture=no",
            "tests/clients/tensorflow",
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert re.search(r"\[100%\]", done.stdout), "it ran tests"
