"""Goal: a click model trained from Keras through a server is as good as in plain Keras.

Method: the models of the examples twice, with the same rows, order, rule and dense weights; the
reference forgets rows that were never trained, because a served table answers zeros for them.
"""

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hybridps_tf import Embedding
from support.plain_keras import PlainEmbedding, forget_untrained
from support.server import ServerProcess
from support.sets import shared

import hybridps as hps
from hybridps.demo import datasets
from hybridps.demo.datasets import Dataset
from hybridps.demo.planted import PlantedLog, auc

DIM, BATCH = 8, 512
RATE, ACCUMULATOR = 0.1, 0.01
AUC_DIFFERENCE_MAX = 1e-4
# AUC that says that something was learnt: of DeepFM, of DLRM.
SETS = {
    "planted": (0.55, 0.55),
    "census": (0.87, 0.87),
    "criteo60k": (0.71, 0.71),
    "ml100k": (0.65, 0.52),
    "ml1m": (0.75, 0.60),
}


@pytest.fixture
def build(monkeypatch):
    """Builds the model of an example by its name, around a layer that gives rows."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))

    def model(name, layer, data: Dataset, dim):
        columns = data.keys.shape[1]
        if name == "deepfm":
            return import_module("deepfm_keras").deepfm(layer, columns, dim)
        return import_module("dlrm_keras").dlrm(layer, columns, dim, data.dense.shape[1])

    yield model
    for name in ("deepfm_keras", "dlrm_keras", "clicks"):
        sys.modules.pop(name, None)


def source(name: str) -> Dataset:
    if name == "planted":
        return PlantedLog(50_000, seed=3).dataset(20_000, 8_000)
    if name == "census":
        # Plain columns: crosses belong to wide models.
        full = datasets.census()
        return replace(full, keys=np.ascontiguousarray(full.keys[:, : full.singles]))
    return shared(name)


def inputs(model, ids, data, part):
    return ids[part] if len(model.inputs) == 1 else (ids[part], data.dense[part])


def trained(model, ids, data):
    """The model after one pass. The rule is the table's own, so that one serves all weights."""
    rule = keras.optimizers.Adagrad(RATE, initial_accumulator_value=ACCUMULATOR)
    model.compile(rule, "binary_crossentropy")
    order = np.random.default_rng(3).permutation(data.train)
    samples = (inputs(model, ids, data, order), data.label[order])
    model.fit(tf.data.Dataset.from_tensor_slices(samples).batch(BATCH), shuffle=False, verbose=0)
    return model


def auc_of(model, ids, data):
    scores = model.predict(inputs(model, ids, data, data.test), batch_size=BATCH, verbose=0)[:, 0]
    return auc(data.label[data.test], scores)


def plain(build, name, spec, data):
    """(AUC in plain Keras, the number of rows that were trained)."""
    unique, numbers = np.unique(data.keys, return_inverse=True)
    numbers = numbers.reshape(data.keys.shape)
    layer = PlainEmbedding(spec, unique)
    keras.utils.set_random_seed(1)
    model = trained(build(name, layer, data, DIM), numbers, data)
    was_trained = np.zeros(len(unique), bool)
    was_trained[numbers[data.train]] = True
    forget_untrained(layer, was_trained)
    return auc_of(model, numbers, data), was_trained.sum()


@pytest.mark.parametrize("name", ["deepfm", "dlrm"])
@pytest.mark.parametrize("of", SETS)
def test_as_in_plain_keras(tmp_path, build, name, of):
    data = source(of)
    rule = hps.Adagrad(RATE, initial_accumulator=ACCUMULATOR)
    dim = DIM + (name == "deepfm")
    start = hps.Normal(std=0.01 if name == "deepfm" else 0.3)
    spec = hps.TableSpec("features", dim, rule, start, seed=3)
    theirs, rows = plain(build, name, spec, data)
    with ServerProcess(tmp_path / "data", dram="128MiB") as server, hps.connect(server.url) as ps:
        keras.utils.set_random_seed(1)
        ids = data.keys.view(np.int64)
        model = trained(build(name, Embedding(ps, spec), data, DIM), ids, data)
        ours = auc_of(model, ids, data)
        assert len(ps.table("features")) == rows
    print(f"{of} {name}: plain {theirs:.5f}, through the server {ours:.5f}")
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert ours > SETS[of][name == "dlrm"]
