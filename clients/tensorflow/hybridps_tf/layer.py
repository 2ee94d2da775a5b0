"""The Keras layer. Its rows are read where the program runs, by a plain Python call in the graph.

That call is what cannot be compiled: the layer tells Keras that it does not support XLA, so
`jit_compile="auto"` leaves it off for models that hold one; and it runs in this process alone, not
on the workers of a remote strategy, for which there is `InputStage`.
"""

from typing import Any, Self

import keras
import tensorflow as tf

from hybridps.errors import BadInputError
from hybridps.layers.ids import as_padding
from hybridps.layers.loading import load_rows
from hybridps.layers.stores import remember, store_at
from hybridps.types import TableSpec
from hybridps_tf.ids import COMBINERS, as_ids, check_dtype
from hybridps_tf.reader import Reader
from hybridps_tf.receipts import anchor_of


@keras.saving.register_keras_serializable(package="hybridps")
class Embedding(keras.layers.Layer):  # type: ignore[misc]
    """Vectors of ids whose rows live in a table: float32[ids.shape + (dim,)].

    With `training=True`, as in `fit`, absent keys are inserted, each occurrence counts, and the
    gradients of all layers of a store are pushed in one call when a Keras optimizer applies them.
    Otherwise, as in `predict` and `evaluate`, nothing is inserted, and absent keys give zeros.

    Args: combiner: None, or how the ids of the last axis (of a ragged tensor, of a line of a sparse
        one) are reduced to one vector: "sum", "mean", "sqrtn". An empty bag gives zeros.
        padding_idx: an id that reads as zeros, is no part of a bag, and is never trained, counted
        or stored.
    Ids are integers of any width, or texts, of which the key is the hash as everywhere.
    Raises: BadInputError for other ids; under mixed_float16, whose scaled loss would scale the
        gradients of rows; with several replicas.
    """

    def __init__(
        self,
        ps: Any,
        spec: Any,
        combiner: str | None = None,
        *,
        padding_idx: int | None = None,
        **options: Any,
    ) -> None:
        if combiner is not None and combiner not in COMBINERS:
            raise BadInputError(
                f"table {spec.name!r}: combiner is {combiner!r}; give None or one of {COMBINERS}"
            )
        super().__init__(**options)
        self._reader = Reader(ps, spec, as_padding(padding_idx, spec.name))
        self.combiner = combiner
        self.padding_idx = padding_idx
        self.supports_jit = False
        self.autocast = False
        ps.create_table(spec)
        remember(ps)
        self.anchor = anchor_of(ps)
        self.anchor.attach(self)
        self.built = True

    @property
    def reader(self) -> Reader:
        """How its rows are read."""
        return self._reader

    @property
    def ps(self) -> Any:
        """The store."""
        return self._reader.ps

    @property
    def spec(self) -> Any:
        """The spec it was built with."""
        return self._reader.spec

    @property
    def table(self) -> str:
        """Name of the table."""
        return str(self.spec.name)

    def call(self, ids: Any, training: bool | None = None) -> Any:
        """float32[ids.shape + (dim,)]; with a combiner without the last axis of the ids."""
        parts = as_ids(ids, self.table, self.combiner)
        if training:
            self._check_trainable_here()
        rows = self._rows(parts.flat, bool(training))
        if self.combiner is None:
            return parts.shaped(rows, self.spec.dim)
        return parts.combined(rows, self.combiner, self._reader.padding, self.spec.dim)

    def _rows(self, flat: Any, is_training: bool) -> Any:
        if not is_training:
            return self._reader.look_up(flat)
        if not self.trainable:
            return self._reader.insert(flat)
        return self._reader.insert_differentiable(flat, self.anchor)

    def _check_trainable_here(self) -> None:
        if keras.config.dtype_policy().name == "mixed_float16":
            raise BadInputError(
                f"table {self.table!r}: mixed_float16 scales the loss, and with it the gradients of"
                ' rows, beyond what the layer can see; use "mixed_bfloat16" or "float32"'
            )
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            raise BadInputError(
                f"table {self.table!r}: the layer trains in one replica, the strategy has"
                f" {tf.distribute.get_strategy().num_replicas_in_sync}; use hybridps_tf.InputStage"
            )

    def load_rows(self, keys: Any, rows: Any) -> None:
        """Sets pretrained values: float32[keys.shape + (dim,)] for any keys, also absent ones."""
        load_rows(self.ps, self.spec, keys, rows, self._reader.padding)

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        """Shape of the ids, without the last axis if there is a combiner, and dim."""
        shape = tuple(input_shape)
        return (*(shape if self.combiner is None else shape[:-1]), self.spec.dim)

    def compute_output_spec(
        self,
        ids: Any,
        training: bool | None = None,  # noqa: ARG002 - of `call`
    ) -> keras.KerasTensor:
        """As `compute_output_shape`, float32. Refuses an Input of floats, Keras's default."""
        check_dtype(ids.dtype, self.table)
        return keras.KerasTensor(self.compute_output_shape(ids.shape), "float32")

    def save_own_variables(self, store: Any) -> None:
        """Nothing: the rows are the store's to keep, and the anchor holds none."""

    def load_own_variables(self, store: Any) -> None:
        """Nothing; see `save_own_variables`."""

    def get_config(self) -> dict[str, Any]:
        """The URL of the store and the spec: a model that is loaded connects to it."""
        own = {"url": str(self.ps.url), "spec": self.spec.to_json()}
        shared = {"combiner": self.combiner, "padding_idx": self.padding_idx}
        return {**super().get_config(), **own, **shared}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A layer on the store of the URL, connected with the default settings if need be."""
        rest = {name: value for name, value in config.items() if name not in ("url", "spec")}
        return cls(store_at(config["url"]), TableSpec.from_json(config["spec"]), **rest)


def layers_of(model: keras.Model) -> list[Embedding]:
    """The layers of hybridps_tf in a model, at any depth."""
    every = model._flatten_layers()  # noqa: SLF001 - Keras has no public name for it
    return [layer for layer in every if isinstance(layer, Embedding)]
