"""`prefetch`: look-ahead over a tf.data.Dataset for the layers of a model."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from hybridps.errors import BadInputError
from hybridps.layers.ids import as_patterns
from hybridps.layers.lookahead import Feature, Finder, Warmer, check_depth
from hybridps_tf.layer import Embedding, layers_of


def prefetch(
    dataset: tf.data.Dataset,
    model: keras.Model,
    depth: int = 2,
    ids: Callable[..., Any] | None = None,
) -> tf.data.Dataset:
    """The same elements, read up to `depth` ahead; the rows of their ids are warmed meanwhile.

    A hint: it never inserts or counts, so training results stay identical; where a store does not
    take it, a UserWarning tells so once and the data go on.
    Args: ids: element -> its ids by table, by the name of a layer or of the Input that feeds it, or
        one tensor if the model has one layer; called as `dataset.map` would. None finds them: dicts
        with such names, or, with one layer, the first tensor of integers.
    Raises: BadInputError when no ids are found in an element.
    """
    check_depth(depth)
    layers = layers_of(model)
    if not layers:
        raise BadInputError(
            f"{model.name!r} has no layer of hybridps_tf; nothing to look ahead for"
        )
    features = [Feature(_names(layer), layer.ps, layer.table) for layer in layers]
    finder, warmer = Finder(features, _Elements()), Warmer()

    @tf.autograph.experimental.do_not_convert
    def stage(*parts: Any) -> Any:
        element = parts if len(parts) > 1 else parts[0]
        found = finder.find(element, ids=None if ids is None else ids(*parts))

        def warm(*arrays: np.ndarray[Any, Any]) -> None:
            pairs = zip(found, arrays, strict=True)
            warmer.warm([(f, as_patterns(array, f.table)) for (f, _), array in pairs])
            warmer.warn()

        hint = tf.numpy_function(warm, [flat for _, flat in found], [], stateful=True)
        with tf.control_dependencies([hint]):
            return tf.nest.map_structure(tf.identity, element, expand_composites=True)

    return dataset.map(stage).prefetch(depth)


def _names(layer: Embedding) -> frozenset[str]:
    names = {layer.name, layer.table}
    # Of a functional model also what feeds the layer, an Input as a rule.
    with contextlib.suppress(AttributeError, ValueError):
        names.add(layer.input.name)
    return frozenset(names)


class _Elements:
    """How look-ahead finds ids in elements of a data set: they are tensors of its graph."""

    @staticmethod
    def named(value: Any) -> Mapping[str, Any] | None:
        """Dicts."""
        return value if isinstance(value, Mapping) else None

    @staticmethod
    def ids_of(value: Any, _table: str) -> Any:
        """The flat ids of a tensor."""
        if isinstance(value, tf.RaggedTensor):
            return value.flat_values
        if isinstance(value, tf.SparseTensor):
            return value.values
        return tf.reshape(value, [-1]) if tf.is_tensor(value) else None

    def first_ids(self, batch: Any, table: str) -> Any:
        """Those of the first tensor of integers or texts."""
        for part in tf.nest.flatten(batch):
            if part.dtype.is_integer or part.dtype == tf.string:
                return self.ids_of(part, table)
        return None
