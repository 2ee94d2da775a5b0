"""Ids of TensorFlow, dense, ragged or sparse -> flat ids, and rows back into that form."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from hybridps.errors import BadInputError

COMBINERS = ("sum", "mean", "sqrtn")


@dataclass(frozen=True, eq=False, slots=True)
class Ids:
    """Flat ids [n] and how they lie: `given` as the user gave them."""

    flat: Any
    given: Any

    def shaped(self, rows: Any, dim: int) -> Any:
        """A row for each id, in the form of the ids."""
        if isinstance(self.given, tf.RaggedTensor):
            return self.given.with_flat_values(rows)
        shaped = tf.reshape(rows, tf.concat([tf.shape(self.given), [dim]], 0))
        return tf.ensure_shape(shaped, [*self.given.shape, dim])

    def combined(self, rows: Any, combiner: str, padding: int | None, dim: int) -> Any:
        """One vector for each bag of ids: the last axis, or a line of a sparse tensor.

        Padding takes no part; a bag of no other ids is zeros.
        """
        is_part = tf.ones_like(self.flat, tf.float32)
        if padding is not None:
            is_part = tf.cast(self.flat != tf.constant(padding, self.flat.dtype), tf.float32)
        sums, counts = self._sums(rows, dim), self._sums(is_part[:, None], 1)
        if combiner == "sum":
            return sums
        return tf.math.divide_no_nan(sums, tf.sqrt(counts) if combiner == "sqrtn" else counts)

    def _sums(self, rows: Any, dim: int) -> Any:
        if isinstance(self.given, tf.RaggedTensor):
            ragged = self.given.with_flat_values(rows)
            return tf.reduce_sum(ragged, axis=self.given.ragged_rank)
        if isinstance(self.given, tf.SparseTensor):
            lines = tf.cast(self.given.dense_shape[0], tf.int32)
            sums = tf.math.unsorted_segment_sum(rows, self.given.indices[:, 0], lines)
            return tf.ensure_shape(sums, [self.given.shape[0], dim])
        return tf.reduce_sum(self.shaped(rows, dim), axis=-2)


def check_dtype(dtype: Any, table: str) -> None:
    """Raises BadInputError naming the table unless it is one of integers or texts."""
    dtype = tf.as_dtype(dtype)
    if not (dtype.is_integer or dtype == tf.string):
        raise BadInputError(
            f"table {table!r}: ids are {dtype.name}; give integers or texts: in Keras, an Input of"
            ' dtype="int64"'
        )


def as_ids(given: Any, table: str, combiner: str | None) -> Ids:
    """The ids of one call. Raises BadInputError naming the table unless integers or texts."""
    if not isinstance(given, (tf.RaggedTensor, tf.SparseTensor)):
        given = tf.convert_to_tensor(given)
    check_dtype(given.dtype, table)
    if isinstance(given, tf.RaggedTensor):
        return Ids(given.flat_values, given)
    if isinstance(given, tf.SparseTensor):
        if combiner is None:
            raise BadInputError(
                f"table {table!r}: ids are sparse; give a combiner, one of {COMBINERS}, or ragged"
                " ids for a row each"
            )
        return Ids(given.values, given)
    if combiner is not None and given.shape.rank == 0:
        raise BadInputError(f"table {table!r}: one id is no bag; give ids of 1 dimension or more")
    return Ids(tf.reshape(given, [-1]), given)
