"""Goal: a click model trained from Keras through a server is as good as in plain Keras.

Method: the example's DeepFM twice, with the same rows, order, rule and dense weights; the reference
forgets rows that were never trained, because a served table answers zeros for them.
"""

import sys
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
from hybridps.demo.planted import PlantedLog, auc

DIM, BATCH = 8, 1024
AUC_DIFFERENCE_MAX = 1e-4


@pytest.fixture
def deepfm(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "examples"))
    from deepfm_keras import deepfm  # noqa: PLC0415 - where the path says

    yield deepfm
    for name in ("deepfm_keras", "clicks"):
        sys.modules.pop(name, None)


def trained(deepfm, layer, ids, data):
    """The model after one pass. The rule is the table's own, so that one serves all weights."""
    keras.utils.set_random_seed(1)
    model = deepfm(layer, ids.shape[1], DIM)
    rule = keras.optimizers.Adagrad(0.05, initial_accumulator_value=0.1)
    model.compile(rule, "binary_crossentropy")
    order = np.random.default_rng(3).permutation(data.train)
    batches = tf.data.Dataset.from_tensor_slices((ids[order], data.label[order])).batch(BATCH)
    model.fit(batches, shuffle=False, verbose=0)
    return model


def auc_of(model, ids, data):
    scores = model.predict(ids[data.test], batch_size=BATCH, verbose=0)[:, 0]
    return auc(data.label[data.test], scores)


@pytest.mark.parametrize("source", ["planted", "criteo60k"])
def test_as_in_plain_keras(tmp_path, deepfm, source):
    data = (
        PlantedLog(50_000, seed=3).dataset(20_000, 8_000) if source == "planted" else shared(source)
    )
    rule = hps.Adagrad(0.05, initial_accumulator=0.1)
    spec = hps.TableSpec("features", DIM + 1, rule, hps.Normal(std=0.01), seed=3)
    unique, numbers = np.unique(data.keys, return_inverse=True)
    numbers = numbers.reshape(data.keys.shape)
    plain = PlainEmbedding(spec, unique)
    reference = trained(deepfm, plain, numbers, data)
    was_trained = np.zeros(len(unique), bool)
    was_trained[numbers[data.train]] = True
    forget_untrained(plain, was_trained)
    theirs = auc_of(reference, numbers, data)
    with ServerProcess(tmp_path / "data", dram="128MiB") as server, hps.connect(server.url) as ps:
        model = trained(deepfm, Embedding(ps, spec), data.keys.view(np.int64), data)
        ours = auc_of(model, data.keys.view(np.int64), data)
        assert len(ps.table("features")) == was_trained.sum()
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert ours > {"planted": 0.55, "criteo60k": 0.70}[source]
