"""The Keras layer against plain Keras, on a store in this process that counts calls.

TensorFlow and torch do not stand each other in one process: the second to be imported may crash
the interpreter. These tests are therefore collected only by a run that names nothing else, as
`tests/clients/test_tensorflow.py` starts one.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
from support.spy import Spy

import hybridps as hps

HERE = Path(__file__).parent
IS_HERE = all(find_spec(name) for name in ("tensorflow", "keras", "hybridps_tf"))


def pytest_ignore_collect(collection_path, config):
    named = [Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args]
    is_alone = all(HERE in (path, *path.parents) for path in named)
    is_test = collection_path.name.startswith("test_")
    return True if is_test and not (IS_HERE and is_alone) else None


@pytest.fixture
def ps(tmp_path):
    with hps.connect(f"local:{tmp_path}/store", dram="64MiB", nvme="256MiB") as store:
        yield Spy(store)


@pytest.fixture
def spec():
    def make(name="item", dim=4, optimizer=None):
        rule = optimizer or hps.SGD(learning_rate=0.1)
        return hps.TableSpec(name, dim, rule, hps.Normal(std=0.5), seed=7)

    return make


@pytest.fixture
def plain():
    from support.plain_keras import PlainEmbedding  # noqa: PLC0415 - see above

    return PlainEmbedding
