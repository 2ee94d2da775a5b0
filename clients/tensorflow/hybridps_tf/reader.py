"""Rows of one table as tensors, eager or in a graph, and their gradients into the ledger."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from hybridps.layers.gradients import Gradient, without_padding
from hybridps.layers.ids import as_patterns
from hybridps.layers.reading import Purpose, Request, Rows, read
from hybridps_tf.receipts import SLOTS, Anchor, Receipt


class Frozen(Protocol):
    """Rows that no longer change."""

    def look_up(self, ids: Any) -> Any:
        """float32[n, dim] of flat ids."""


class Reader:
    """Reads one table of a store. No variable of Keras: it is not searched for state."""

    def __init__(self, ps: Any, spec: Any, padding: int | None) -> None:
        self.ps = ps
        self.spec = spec
        self.padding = padding
        # Set while a model is exported.
        self.frozen: Frozen | None = None

    def look_up(self, ids: Any) -> Any:
        """float32[n, dim] of flat ids: inserts and counts nothing, absent keys give zeros."""
        if self.frozen is not None:
            return self.frozen.look_up(ids)
        return self._call(self._look_up, [ids], [ids.shape[0], self.spec.dim])

    def insert(self, ids: Any) -> Any:
        """As `look_up`, but absent keys are inserted and each occurrence counts."""
        return self._call(self._insert, [ids], [ids.shape[0], self.spec.dim])

    def insert_differentiable(self, ids: Any, anchor: Anchor) -> Any:
        """As `insert`; the gradient of the rows is noted, and the anchor's is the receipt."""

        @tf.custom_gradient
        def rows(_anchor: Any) -> Any:
            def gradient(upstream: Any) -> Any:
                def note(patterns: NDArray[np.generic], given: Rows) -> Receipt:
                    return self._note(anchor, patterns, given)

                return self._call(note, [ids, upstream], [2, SLOTS])

            return self.insert(ids), gradient

        return rows(tf.convert_to_tensor(anchor))

    def _look_up(self, ids: NDArray[np.generic]) -> Rows:
        return self._read(ids, Purpose.INFERENCE)

    def _insert(self, ids: NDArray[np.generic]) -> Rows:
        return self._read(ids, Purpose.TRAINING)

    def _read(self, ids: NDArray[np.generic], purpose: Purpose) -> Rows:
        patterns = as_patterns(ids, self.spec.name)
        return read(self.ps, {"ids": Request(self.spec, patterns, self.padding)}, purpose)["ids"]

    def _note(self, anchor: Anchor, ids: NDArray[np.generic], rows: Rows) -> Receipt:
        # Copied: the buffer is TensorFlow's, which fills it anew in the next step.
        patterns = as_patterns(ids, self.spec.name).copy()
        patterns, rows = without_padding(patterns, np.array(rows, np.float32), self.padding)
        return anchor.ledger.note(Gradient(self.ps, self.spec.name, patterns, rows))

    @staticmethod
    def _call(function: Callable[..., Any], inputs: list[Any], shape: list[int | None]) -> Any:
        """A Python call: at once where TensorFlow is eager, which keeps errors as they are."""
        if tf.executing_eagerly():
            return tf.convert_to_tensor(function(*(part.numpy() for part in inputs)))
        result = tf.numpy_function(function, inputs, tf.float32, stateful=True)
        return tf.ensure_shape(result, shape)
