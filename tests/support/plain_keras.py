"""Plain Keras to compare with, and the devices that tests of TensorFlow use."""

import os
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

# Two devices, for strategies with two replicas; few threads, because tests share two cores.
_two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], _two)
tf.config.set_visible_devices([], "GPU")
tf.config.threading.set_inter_op_parallelism_threads(2)
tf.config.threading.set_intra_op_parallelism_threads(1)


class PlainEmbedding(keras.layers.Layer):
    """From the rows that a table starts with; its gradient is made dense, so that repeated ids are
    summed before an optimizer squares them."""

    def __init__(
        self, spec: Any, keys: Any, combiner: str | None = None, padding: int | None = None
    ) -> None:
        super().__init__()
        rows = spec.initial_rows(keys)
        if padding is not None:
            rows[padding] = 0
        self.rows = self.add_weight(shape=rows.shape, initializer=lambda *_, **__: rows)
        self.combiner, self.padding = combiner, padding

    def call(self, ids: Any) -> Any:
        """As hybridps_tf.Embedding, of row numbers."""
        rows = tf.gather(_densified(tf.convert_to_tensor(self.rows)), ids)
        is_part = tf.ones(tf.shape(ids))
        if self.padding is not None:
            is_part = tf.cast(ids != self.padding, tf.float32)
        rows *= is_part[..., None]
        if self.combiner is None:
            return rows
        counts = tf.maximum(tf.reduce_sum(is_part, -1, keepdims=True), 1)
        divisor = {"sum": 1.0, "mean": counts, "sqrtn": tf.sqrt(counts)}[self.combiner]
        return tf.reduce_sum(rows, -2) / divisor


@tf.custom_gradient
def _densified(rows: Any) -> Any:
    return tf.identity(rows), tf.convert_to_tensor


def forget_untrained(layer: PlainEmbedding, trained: Any) -> None:
    """Zeroes rows that training did not name: a served table answers zeros for them."""
    layer.rows.assign(np.where(trained[:, None], layer.rows.numpy(), np.float32(0)))
