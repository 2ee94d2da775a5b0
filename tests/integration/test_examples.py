"""Goal: every example runs and does what it says. Method: each in a process of its own against one
server, as its first lines tell users to; what it prints is read."""

import asyncio
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from support.server import ServerProcess, environment

import hybridps as hps

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN_S = 180
TESTED = {
    "deepfm_torch",
    "deepfm_keras",
    "dlrm_torch",
    "dlrm_keras",
    "inference_service",
    "two_models",
    "string_ids",
    "vector_index",
}


def needs(*modules):
    absent = [name for name in modules if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)} not installed")


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with ServerProcess(tmp_path_factory.mktemp("examples") / "d", dram="64MiB") as server:
        yield server.url


def run(name, *arguments):
    line = [sys.executable, f"{name}.py", *arguments]
    done = subprocess.run(
        line,
        cwd=EXAMPLES,
        env=environment(TF_CPP_MIN_LOG_LEVEL="2"),
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def numbers(text, pattern):
    return [float(number) for number in re.findall(pattern, text)]


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")} - {"clicks"}
    assert names == TESTED
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert all(f"examples/{name}.py" in listed for name in names)


@needs("torch", "hybridps_torch")
def test_deepfm_in_torch(url):
    said = run("deepfm_torch", url)
    assert all(value > 0.7 for value in numbers(said, r"AUC ([\d.]+)"))
    with hps.connect(url) as ps:
        assert len(ps.table("deepfm")) == numbers(said, r", (\d+) rows")[-1]
        assert ps.table("deepfm").spec.optimizer.learning_rate == pytest.approx(0.064)


@needs("tensorflow", "keras", "hybridps_tf")
def test_deepfm_in_keras(url, tmp_path):
    said = run("deepfm_keras", url, str(tmp_path / "model"))
    assert numbers(said, r"AUC ([\d.]+)")[0] > 0.7
    assert numbers(said, r"difference (\S+)")[0] < 1e-6


@needs("torch", "hybridps_torch")
def test_dlrm_in_torch(url):
    said = run("dlrm_torch", url)
    assert numbers(said, r"AUC ([\d.]+)")[0] > 0.7
    rows = numbers(said, r"(\d+) of")
    with hps.connect(url) as ps:
        columns = ("user", "item", "shop", "hour")
        assert rows == [len(ps.table(f"dlrm-{column}")) for column in columns]


@needs("tensorflow", "keras", "hybridps_tf")
def test_dlrm_in_keras(url):
    said = run("dlrm_keras", url)
    assert numbers(said, r"AUC ([\d.]+)")[0] > 0.7
    with hps.connect(url) as ps:
        assert len(ps.table("dlrm-keras")) == numbers(said, r", (\d+) rows")[0]


@needs("torch", "hybridps_torch")
def test_two_models(url):
    said = run("two_models", url)
    trained, other = numbers(said, r"AUC ([\d.]+)")
    assert trained > 0.6
    assert other > 0.6, "it ranks by what it never trained on"


@needs("pandas")
def test_string_ids(url):
    said = run("string_ids", url)
    red, green, _ = numbers(said, r": ([+-][\d.]+)")
    assert red > 0.5 > -0.5 > green


def test_vector_index(url, tmp_path):
    """The index goes on from where it was, and knows what is like what after every change."""
    place = tmp_path / "index.npz"
    with hps.connect(url) as ps:
        table = ps.create_table(hps.TableSpec("vectors", 2, hps.SGD(0.1)))
        table.assign([1, 2, 3, 4], np.array([[1, 0], [9, 1], [0, 1], [0, 8]], np.float32))
        said = run("vector_index", url, "vectors", "1", str(place))
        assert (numbers(said, r"(\d+) vectors"), numbers(said, r"key (\d+)")) == ([4], [2, 3, 4])
        table.remove([2])
        table.assign([4, 5], np.array([[7, 0], [1, 2]], np.float32))
        said = run("vector_index", url, "vectors", "1", str(place))
        assert (numbers(said, r"(\d+) vectors"), numbers(said, r"key (\d+)")) == ([4], [4, 5, 3])
        assert numbers(said, r"(\d+) changed") == [3]


async def test_inference_service(url):
    rows = [[1.0, 2.0], [3.0, 4.0]]
    with hps.connect(url) as ps:
        for name, key, row in (("user", "alice", rows[0]), ("item", "shoes", rows[1])):
            table = ps.create_table(hps.TableSpec(name, 2, hps.SGD(0.1)))
            table.assign([key], np.array([row], np.float32))
    line = [sys.executable, "inference_service.py", url]
    service = await asyncio.create_subprocess_exec(
        *line, cwd=EXAMPLES, env=environment(), stdout=asyncio.subprocess.PIPE
    )
    try:
        ready = await asyncio.wait_for(service.stdout.readline(), RUN_S)
        port = int(ready.split()[-1])
        async with aiohttp.ClientSession() as session:
            ask = f"http://127.0.0.1:{port}/score?user=alice&items=shoes,hats"
            answers = await asyncio.gather(*(session.get(ask) for _ in range(20)))
            for answer in answers:
                assert answer.status == 200
                assert await answer.json() == {"shoes": 11.0, "hats": None}
    finally:
        service.terminate()
        await service.wait()
