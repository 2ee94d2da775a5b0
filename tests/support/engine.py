"""What the engine that is built in can do."""

import functools
import tempfile

import pytest

from hybridps import _core

_SPEC = """{"name": "t", "dim": 1, "optimizer": {"kind": "sgd"}, "learning_rate": 1.0,
"initializer": {"kind": "zeros"}, "seed": 0, "dtype": "float32", "dram": null, "nvme": null}"""


@functools.cache
def persists() -> bool:
    """Whether a table outlives the store that made it."""
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(2):
            store = _core.Store(
                directory, dram=8 << 20, nvme=64 << 20, durability="none", threads=1
            )
            known = store.tables() == ["t"]
            store.create_table(_SPEC)
            store.close()
        return known


needs_engine = pytest.mark.skipif(not persists(), reason="the store built in keeps nothing")
