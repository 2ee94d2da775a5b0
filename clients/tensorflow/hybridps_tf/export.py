"""Export of a model to a plain SavedModel: the rows of its tables, frozen, beside its weights.

What is written holds ops and variables of stock TensorFlow alone; where it is loaded nothing of
hybridps is needed, and no server.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from hybridps.errors import BadInputError
from hybridps.keys import as_keys
from hybridps.layers.ids import Patterns
from hybridps_tf.layer import Embedding, layers_of
from hybridps_tf.reader import Reader

_READ_KEYS = 1 << 18


class FrozenRows:
    """Rows of a table as variables: keys in ascending order, found by bisection.

    Cost: 8 + 4 * dim bytes a row, in memory and in the SavedModel.
    """

    def __init__(self, reader: Reader, keys: ArrayLike | None) -> None:
        self._table = reader.spec.name
        patterns = np.unique(self._all(reader) if keys is None else _patterns(keys, self._table))
        if reader.padding is not None:
            patterns = patterns[patterns != reader.padding]
        rows = np.zeros((patterns.size + 1, reader.spec.dim), np.float32)
        table = reader.ps.table(self._table)
        for start in range(0, patterns.size, _READ_KEYS):
            part = patterns[start : start + _READ_KEYS]
            rows[start : start + part.size] = table.lookup(part)
        # The last row, of zeros, is that of all other keys.
        self.rows = tf.Variable(rows, trainable=False, name=f"{self._table}_rows")
        self.keys = tf.Variable(patterns, trainable=False, name=f"{self._table}_keys")

    def look_up(self, ids: Any) -> Any:
        """float32[n, dim] of flat ids; zeros for keys that were not frozen."""
        if ids.dtype == tf.string:
            raise BadInputError(
                f"table {self._table!r}: ids are texts, whose hash stock TensorFlow cannot compute;"
                " export a model that takes integers, those of hybridps's own hash"
            )
        ids = tf.bitcast(ids, tf.int64) if ids.dtype == tf.uint64 else tf.cast(ids, tf.int64)
        keys = tf.convert_to_tensor(self.keys)
        count = tf.size(keys)
        places = tf.searchsorted(keys, ids)
        is_found = tf.gather(tf.concat([keys, [0]], 0), places) == ids
        is_found = tf.logical_and(is_found, places < count)
        return tf.gather(self.rows, tf.where(is_found, places, count))

    @staticmethod
    def _all(reader: Reader) -> Patterns:
        parts = [np.zeros(0, np.uint64), *reader.ps.table(reader.spec.name).keys()]
        return np.concatenate(parts).view(np.int64)


def export(
    model: keras.Model,
    path: str,
    *,
    input_signature: Any = None,
    keys: Mapping[str, ArrayLike] | None = None,
) -> None:
    """Writes a SavedModel, with the endpoint "serve", that `tf.saved_model.load` takes anywhere.

    Args: input_signature: the inputs, as tf.TensorSpec; None takes those of a functional model.
        keys: by table, the keys whose rows are frozen; None, or a table that is not named: all.
    Note: rows are read while training may go on; push nothing meanwhile for one moment's rows.
    Raises: BadInputError for models without layers of hybridps_tf, or whose ids are texts.
    """
    layers = layers_of(model)
    if not layers:
        raise BadInputError(f"{model.name!r} has no layer of hybridps_tf; use model.export")
    for table in keys or {}:
        if table not in {layer.table for layer in layers}:
            raise BadInputError(f"keys name table {table!r}, of which the model has no layer")
    archive = keras.export.ExportArchive()
    archive.track(model)
    with _frozen(layers, keys or {}) as frozen:
        variables = [v for rows in frozen for v in (rows.keys, rows.rows)]
        archive.add_variable_collection("hybridps_rows", variables)
        signature = _signature(model) if input_signature is None else input_signature
        archive.add_endpoint(
            "serve", lambda *inputs: model(*inputs, training=False), input_signature=signature
        )
        archive.write_out(path, verbose=False)


@contextmanager
def _frozen(layers: list[Embedding], keys: Mapping[str, ArrayLike]) -> Iterator[list[FrozenRows]]:
    """Within it the layers read frozen rows; layers of one table share them."""
    frozen: dict[tuple[int, str, int | None], FrozenRows] = {}
    for layer in layers:
        reader = layer.reader
        at = id(reader.ps), reader.spec.name, reader.padding
        if at not in frozen:
            frozen[at] = FrozenRows(reader, keys.get(reader.spec.name))
        reader.frozen = frozen[at]
    try:
        yield list(frozen.values())
    finally:
        for layer in layers:
            layer.reader.frozen = None


def _signature(model: keras.Model) -> list[Any]:
    inputs = getattr(model, "_inputs_struct", None)
    if inputs is None:
        raise BadInputError(
            f"{model.name!r} is no functional model; give input_signature=, a list of tf.TensorSpec"
        )
    return [keras.tree.map_structure(_spec, inputs)]


def _spec(tensor: keras.KerasTensor) -> Any:
    if getattr(tensor, "sparse", False):
        return tf.SparseTensorSpec(tensor.shape, tensor.dtype)
    if getattr(tensor, "ragged", False):
        return tf.RaggedTensorSpec(tensor.shape, tensor.dtype)
    return tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name)


def _patterns(keys: ArrayLike, table: str) -> NDArray[np.int64]:
    return as_keys(keys, table)[0].view(np.int64)
