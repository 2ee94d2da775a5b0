"""The input stage: rows as inputs of a model, for steps that run where this process is not.

A layer reads where the program runs. Under a strategy with several replicas or remote workers the
step runs elsewhere; there the process that feeds the steps reads rows, gives them to the step
beside the rest of the batch, and pushes the gradients that come back.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from hybridps.errors import BadInputError
from hybridps.layers.gradients import Gradient, push, without_padding
from hybridps.layers.ids import Patterns, as_padding, as_patterns
from hybridps.layers.reading import Purpose, Request, read
from hybridps_tf.ids import as_ids


class InputStage:
    """Rows of several features, read by one call and pushed by one call to each server.

        stage = hybridps_tf.InputStage(ps, {"item": spec})
        rows = stage.read({"item": ids})
        loss, gradients = strategy.run(step, args=(rows, labels))     # tape.gradient(loss, rows)
        stage.push({"item": ids}, gradients)

    Runs eagerly, in the process that holds the connection. Features may share a table.
    Args: padding_idx: reads as zeros, and is never trained, counted or stored.
    """

    def __init__(
        self, ps: Any, specs: Mapping[str, Any], *, padding_idx: int | None = None
    ) -> None:
        if not specs:
            raise BadInputError("the input stage has no features; give {feature: spec}")
        self._ps = ps
        self._specs = dict(specs)
        self._padding = {f: as_padding(padding_idx, s.name) for f, s in specs.items()}
        for spec in specs.values():
            ps.create_table(spec)

    def read(self, features: Mapping[str, Any], training: bool = True) -> dict[str, Any]:
        """float32[ids.shape + (dim,)] by feature, ragged for ragged ids; a row a value for sparse.

        With `training` absent keys are inserted and each occurrence counts.
        """
        ids = {f: as_ids(part, self._spec(f).name, "sum") for f, part in features.items()}
        requests = {f: Request(self._specs[f], *self._of(f, part)) for f, part in ids.items()}
        rows = read(self._ps, requests, Purpose.TRAINING if training else Purpose.INFERENCE)
        return {
            f: tf.constant(rows[f])
            if isinstance(part.given, tf.SparseTensor)
            else part.shaped(tf.constant(rows[f]), self._specs[f].dim)
            for f, part in ids.items()
        }

    def push(self, features: Mapping[str, Any], gradients: Mapping[str, Any]) -> None:
        """Pushes gradients of the rows that `read` gave for these ids; None is no gradient."""
        due = []
        for feature, given in gradients.items():
            if given is None:
                continue
            spec = self._spec(feature)
            ids = as_ids(features[feature], spec.name, "sum")
            dense = given.flat_values if isinstance(given, tf.RaggedTensor) else given
            rows = tf.convert_to_tensor(dense).numpy()
            patterns, padding = self._of(feature, ids)
            if rows.size != patterns.size * spec.dim:
                raise BadInputError(
                    f"table {spec.name!r}: gradients of {feature!r} have shape {rows.shape}; give"
                    f" {spec.dim} numbers for each of its {patterns.size} ids"
                )
            due.append(
                Gradient(self._ps, spec.name, *without_padding(patterns, np.array(rows), padding))
            )
        push(due)

    def _of(self, feature: str, ids: Any) -> tuple[Patterns, int | None]:
        patterns = as_patterns(ids.flat.numpy(), self._specs[feature].name)
        return patterns, self._padding[feature]

    def _spec(self, feature: str) -> Any:
        if feature not in self._specs:
            raise BadInputError(
                f"feature {feature!r} is not in this stage; it has {sorted(self._specs)}"
            )
        return self._specs[feature]
