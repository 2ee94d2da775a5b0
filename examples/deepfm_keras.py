"""DeepFM in Keras 3: `model.fit` as ever, rows of all ids live in one table.

python examples/deepfm_keras.py URL [DIRECTORY]
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import hybridps_tf
import keras
import tensorflow as tf
from clicks import COLUMNS, auc, clicks

import hybridps as hps

DIM, BATCH = 8, 256


def deepfm(rows: keras.layers.Layer, columns: int, dim: int, hidden: int = 32) -> keras.Model:
    """First order + factorisation machine + a network, over one vector for each column.

    `rows` gives float32[batch, columns, dim + 1]: a vector, and the weight of the id itself.
    """
    ids = keras.Input((columns,), dtype="int64", name="ids")
    every = rows(ids)
    x, first_order = every[..., :dim], keras.ops.sum(every[..., dim], axis=1, keepdims=True)
    total = keras.ops.sum(x, axis=1)
    squares = keras.ops.sum(keras.ops.square(x), axis=1)
    pairs = 0.5 * keras.ops.sum(keras.ops.square(total) - squares, axis=1, keepdims=True)
    deep = keras.layers.Dense(hidden, activation="relu")(keras.layers.Flatten()(x))
    logit = first_order + pairs + keras.layers.Dense(1)(deep)
    return keras.Model(ids, keras.layers.Activation("sigmoid")(logit))


def main(url: str, directory: str | None = None) -> None:
    """Trains for two passes, prints the AUC on other samples, and exports the model."""
    keras.utils.set_random_seed(0)
    test_ids, test_label = clicks(5_000, seed=1)
    with hps.connect(url) as ps:
        spec = hps.TableSpec("deepfm-keras", DIM + 1, hps.Adagrad(0.1), hps.Normal(std=0.01))
        model = deepfm(hybridps_tf.Embedding(ps, spec), len(COLUMNS), DIM)
        model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
        samples = tf.data.Dataset.from_tensor_slices(clicks(20_000)).shuffle(20_000).batch(BATCH)
        model.fit(hybridps_tf.prefetch(samples, model), epochs=2, shuffle=False, verbose=0)
        score = model.predict(test_ids, verbose=0)[:, 0]
        print(f"AUC {auc(test_label, score):.4f}, {len(ps.table('deepfm-keras'))} rows")
        if directory is not None:
            hybridps_tf.export(model, directory)
            loaded = tf.saved_model.load(directory)
            served = loaded.serve(test_ids).numpy()[:, 0]
            print(f"exported to {directory}; largest difference {abs(served - score).max():.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
