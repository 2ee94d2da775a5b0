"""DLRM in Keras 3: `model.fit` with ids and dense features, rows of all ids in one table.

python examples/dlrm_keras.py URL
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import hybridps_tf
import keras
import numpy as np
import tensorflow as tf
from clicks import COLUMNS, DENSE, auc, clicks, dense_of

import hybridps as hps

DIM, BATCH = 8, 256


def dlrm(
    rows: keras.layers.Layer, columns: int, dim: int, dense: int, hidden: int = 32
) -> keras.Model:
    """Dot products between the vectors of all columns and that of the dense features.

    `rows` gives float32[batch, columns, dim]; `dense` is the number of dense features. Where there
    are none, the vectors themselves stand beside the products.
    """
    ids = keras.Input((columns,), dtype="int64", name="ids")
    numbers = keras.Input((dense,), name="numbers") if dense else None
    x = rows(ids)
    if numbers is None:
        beside = keras.layers.Flatten()(x)
    else:
        beside = keras.layers.Dense(dim, activation="relu")(numbers)
        x = keras.layers.Concatenate(axis=1)([beside[:, None, :], x])
    count = columns + bool(dense)
    left, right = np.triu_indices(count, k=1)
    dots = keras.ops.reshape(keras.layers.Dot(axes=2)([x, x]), (-1, count * count))
    dots = keras.ops.take(dots, left * count + right, axis=1)
    top = keras.layers.Dense(hidden, activation="relu")(keras.ops.concatenate([beside, dots], 1))
    logit = keras.layers.Dense(1)(top)
    inputs = [ids, numbers] if dense else ids
    return keras.Model(inputs, keras.layers.Activation("sigmoid")(logit))


def main(url: str) -> None:
    """Trains for three passes and prints the AUC on samples that were not trained on."""
    keras.utils.set_random_seed(0)
    ids, label = clicks(20_000)
    test_ids, test_label = clicks(5_000, seed=1)
    with hps.connect(url) as ps:
        spec = hps.TableSpec("dlrm-keras", DIM, hps.Adagrad(0.1), hps.Uniform(-0.1, 0.1))
        model = dlrm(hybridps_tf.Embedding(ps, spec), len(COLUMNS), DIM, len(DENSE))
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
        samples = tf.data.Dataset.from_tensor_slices(((ids, dense_of(ids)), label))
        model.fit(samples.shuffle(20_000).batch(BATCH), epochs=3, verbose=0)
        score = model.predict((test_ids, dense_of(test_ids)), verbose=0)[:, 0]
        print(f"AUC {auc(test_label, score):.4f}, {len(ps.table('dlrm-keras'))} rows")


if __name__ == "__main__":
    main(*sys.argv[1:])
