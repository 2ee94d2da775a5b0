"""The layers, with the call signatures of torch's. Only shapes and pooling; `Layer` reads.

Unlike torch's, keys are any 64-bit pattern: there is no num_embeddings, and a negative
padding_idx is that key, not a position from the end.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hybridps.errors import BadInputError
from hybridps_torch.keys import Keys, as_key, as_keys
from hybridps_torch.layer import Layer, unknown_feature

_MODES = ("sum", "mean", "max")


class _SingleTable(Layer):
    def __init__(self, ps: Any, spec: Any, padding_idx: int | None) -> None:
        super().__init__(ps, {"ids": spec})
        self.padding_idx = padding_idx
        self._padding = as_key(padding_idx, self.table)

    @property
    def table(self) -> str:
        """Name of the table."""
        return self.tables["ids"]

    @property
    def embedding_dim(self) -> int:
        """Columns of a row."""
        return self._dims["ids"]

    def extra_repr(self) -> str:
        """As "table='item', dim=16, padding_idx=0"."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return super().extra_repr() + padding


class Embedding(_SingleTable):
    """float32[ids.shape + (dim,)] on the device of the ids; call signature of nn.Embedding.

    In training mode absent keys are inserted and each occurrence counts; gradients of all layers
    are pushed once, when the backward pass ends. In eval mode absent keys read as zeros.
    padding_idx: never updated by training, and reads as what the table holds: its initial row
    unless `assign` set it, to zeros for example.
    """

    def __init__(self, ps: Any, spec: Any, padding_idx: int | None = None) -> None:
        super().__init__(ps, spec, padding_idx)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """One row an id. Raises BadInputError for ids that are not a tensor of integers."""
        keys = as_keys(input, self.table)
        return self._read({"ids": (keys, input.device)}, self._padding)["ids"]


class EmbeddingBag(_SingleTable):
    """float32[bags, dim]: rows reduced by bag; call signature and numbers of nn.EmbeddingBag.

    padding_idx: such entries are neither read nor part of a bag; an empty bag is zeros.
    """

    def __init__(
        self,
        ps: Any,
        spec: Any,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
    ) -> None:
        if mode not in _MODES:
            raise BadInputError(f"table {spec.name!r}: mode is {mode!r}; give one of {_MODES}")
        super().__init__(ps, spec, padding_idx)
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self,
        input: Tensor,  # noqa: A002 - torch's name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """One row a bag: ids are 2-D, a bag a line, or 1-D with the offset where each bag begins.

        per_sample_weights: shape of the ids, mode "sum" only; differentiable.
        Raises: BadInputError for ids, offsets or weights that do not fit; nothing is read then.
        """
        keys = as_keys(input, self.table)
        starts = self._starts(keys, offsets)
        weights = self._weights(input, per_sample_weights)
        keys = keys.reshape(-1)
        if self._padding is not None:
            kept = keys != self._padding
            keys, starts = keys[kept], np.concatenate(([0], np.cumsum(kept)))[starts]
            if weights is not None:
                weights = weights[torch.from_numpy(kept).to(weights.device)]
        rows = self._read({"ids": (keys, input.device)})["ids"]
        return functional.embedding_bag(
            torch.arange(keys.size, device=input.device),
            rows,
            torch.from_numpy(starts).to(input.device),
            mode=self.mode,
            # Sparse: the gradient comes back as one row a position, no scatter into a dense one.
            sparse=self.mode != "max",
            per_sample_weights=None if weights is None else weights.to(rows.dtype),
            include_last_offset=self.include_last_offset,
        )

    def _starts(self, keys: Keys, offsets: Tensor | None) -> Keys:
        """Where bags begin among the flat ids; with include_last_offset also where they end."""
        if keys.ndim == 2:  # noqa: PLR2004 - bags and places
            if offsets is not None:
                raise self._refused("offsets are given with 2-D ids; drop one of the two")
            bags, size = keys.shape
            lines = np.arange(bags + self.include_last_offset, dtype=np.int64)
            return np.multiply(lines, size, dtype=np.int64)
        if keys.ndim != 1:
            raise self._refused(f"ids have {keys.ndim} dimensions; give 1 with offsets, or 2")
        if offsets is None:
            raise self._refused("1-D ids come without offsets; give where each bag begins")
        starts = as_keys(offsets, self.table)
        least = 1 if self.include_last_offset else 0
        if starts.ndim != 1 or starts.size < least:
            raise self._refused(f"offsets are of shape {starts.shape}; give 1-D, {least} or more")
        if starts.size and (
            starts[0] != 0 or starts[-1] > keys.size or (np.diff(starts) < 0).any()
        ):
            raise self._refused(f"offsets do not ascend from 0 to at most {keys.size}: {starts}")
        return starts

    def _weights(self, ids: Tensor, weights: Tensor | None) -> Tensor | None:
        if weights is None:
            return None
        if self.mode != "sum":
            raise self._refused(f'per_sample_weights need mode="sum"; mode is {self.mode!r}')
        if weights.shape != ids.shape or not weights.is_floating_point():
            given = f"{weights.dtype} of shape {tuple(weights.shape)}"
            raise self._refused(
                f"per_sample_weights are {given}; give floats of shape {tuple(ids.shape)}"
            )
        return weights.reshape(-1)

    def _refused(self, why: str) -> BadInputError:
        return BadInputError(f"table {self.table!r}: {why}")

    def extra_repr(self) -> str:
        """As "table='item', dim=16, mode='mean'"."""
        return f"{super().extra_repr()}, mode={self.mode!r}"


class EmbeddingCollection(Layer):
    """Several features at once: id tensors by feature in, vectors by feature out, one call.

    Features may share a table. A forward may name any of the features.
    """

    def __init__(self, ps: Any, specs: Mapping[str, Any]) -> None:
        if not specs:
            raise BadInputError("the collection has no features; give {feature: spec}")
        super().__init__(ps, specs)

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """float32[ids.shape + (dim,)] by feature, each on the device of its ids."""
        keys = {}
        for feature, ids in features.items():
            if feature not in self.tables:
                raise unknown_feature(feature, self.tables)
            keys[feature] = (as_keys(ids, self.tables[feature]), ids.device)
        return self._read(keys)
