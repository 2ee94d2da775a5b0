"""Bags of ids and their reduction to one vector each, with the numbers of nn.EmbeddingBag."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hybridps.errors import BadInputError
from hybridps.layers import bags as shared
from hybridps.layers.bags import Offsets
from hybridps.layers.ids import Patterns, is_kept
from hybridps_torch.ids import Ids, as_ids

_MODES = ("sum", "mean", "max")


@dataclass(frozen=True, eq=False, slots=True)
class Bags:
    """Flat ids without padding, where each bag begins and the last one ends, and weights."""

    patterns: Patterns
    device: torch.device
    offsets: Offsets
    weights: Tensor | None


@dataclass(frozen=True, slots=True)
class Pooling:
    """How one table's rows are reduced."""

    table: str
    mode: str
    include_last_offset: bool = False

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise self._refused(f"mode is {self.mode!r}; give one of {_MODES}")

    def bags(
        self, given: Any, offsets: Tensor | None, weights: Tensor | None, padding: int | None
    ) -> Bags:
        """The bags of what the user gave. Raises BadInputError where it does not fit."""
        ids = as_ids(given, self.table)
        starts = self._offsets(ids, offsets)
        weights = self._weights(ids, weights)
        patterns = ids.patterns.reshape(-1)
        kept = is_kept(patterns, padding)
        if kept is not None:
            patterns, starts = patterns[kept], shared.without(kept, starts)
            if weights is not None:
                weights = weights[torch.from_numpy(kept).to(weights.device)]
        return Bags(patterns, ids.device, starts, weights)

    def reduce(self, bags: Bags, rows: Tensor) -> Tensor:
        """float32[bags, dim] of one row an id; an empty bag is zeros."""
        return functional.embedding_bag(
            torch.arange(bags.patterns.size, device=bags.device),
            rows,
            torch.from_numpy(bags.offsets).to(bags.device),
            mode=self.mode,
            # Sparse: the gradient comes back as one row a position, no scatter into a dense one.
            sparse=self.mode != "max",
            per_sample_weights=None if bags.weights is None else bags.weights.to(rows.dtype),
            include_last_offset=True,
        )

    def _offsets(self, ids: Ids, given: Tensor | None) -> Offsets:
        """Where bags begin among the flat ids, and where the last one ends."""
        patterns, offsets, has_end = ids.patterns, ids.offsets, ids.has_end
        if patterns.ndim == 2:  # noqa: PLR2004 - bags and places
            if given is not None:
                raise self._refused("offsets are given with 2-D ids; drop one of the two")
            return shared.of_lines(*patterns.shape, has_end=True)
        if patterns.ndim != 1:
            raise self._refused(f"ids have {patterns.ndim} dimensions; give 1 with offsets, or 2")
        if given is not None:
            if offsets is not None:
                raise self._refused("offsets are given twice, with the ids and beside them")
            offsets = as_ids(given, self.table).patterns
        if offsets is None:
            raise self._refused("1-D ids come without offsets; give where each bag begins")
        has_end = has_end or self.include_last_offset
        shared.checked(offsets, patterns.size, has_end, self.table)
        return shared.with_end(offsets, patterns.size, has_end)

    def _weights(self, ids: Ids, weights: Tensor | None) -> Tensor | None:
        weights = ids.weights if weights is None else weights
        if weights is None:
            return None
        if self.mode != "sum":
            raise self._refused(f'per_sample_weights need mode="sum"; mode is {self.mode!r}')
        shape = ids.patterns.shape
        if tuple(weights.shape) != shape or not weights.is_floating_point():
            given = f"{weights.dtype} of shape {tuple(weights.shape)}"
            raise self._refused(f"per_sample_weights are {given}; give floats of shape {shape}")
        return weights.reshape(-1)

    def _refused(self, why: str) -> BadInputError:
        return BadInputError(f"table {self.table!r}: {why}")
