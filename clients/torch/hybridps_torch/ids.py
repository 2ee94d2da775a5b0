"""What users of torch call ids -> flat patterns on the host, and the bags they lie in.

Ids come as a tensor of any shape, as jagged `(values, offsets)`, as a nested tensor, or as a
KeyedJaggedTensor of TorchRec, which is known by its methods: TorchRec itself is never imported.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybridps.errors import BadInputError
from hybridps.layers import bags
from hybridps.layers.bags import Offsets
from hybridps.layers.ids import Patterns, as_patterns


@dataclass(frozen=True, eq=False, slots=True)
class Ids:
    """Ids of one feature in one batch.

    `offsets` are those of jagged ids, which are flat then; with an end if `has_end`. `weights` are
    TorchRec's, one an id.
    """

    patterns: Patterns
    device: torch.device
    offsets: Offsets | None = None
    has_end: bool = False
    weights: Tensor | None = None
    nested: Tensor | None = None

    def shaped(self, rows: Tensor) -> Tensor:
        """The rows of these ids as the ids came: nested for nested ids, else one row an id."""
        if self.nested is None:
            return rows
        if self.nested.layout == torch.jagged:
            offsets = self.nested.offsets()
            return torch.nested.nested_tensor_from_jagged(rows, offsets.to(rows.device))
        return torch.nested.as_nested_tensor(
            list(rows.split([part.numel() for part in self.nested.unbind()]))
        )


def as_ids(ids: Any, table: str) -> Ids:
    """The ids of one feature. Raises BadInputError naming the table for anything else."""
    if isinstance(ids, Tensor):
        return _of_nested(ids, table) if ids.is_nested else _of_tensor(ids, table)
    if is_pair(ids):
        return _of_pair(*ids, table)
    if is_keyed(ids):
        if len(ids.keys()) != 1:
            raise BadInputError(
                f"table {table!r}: the KeyedJaggedTensor has the keys {list(ids.keys())}; give one"
                " of a single key, or use a collection"
            )
        (ids,) = ids.to_dict().values()
    if is_jagged(ids):
        return _of_jagged(ids, table)
    raise BadInputError(
        f"table {table!r}: ids are a {type(ids).__name__}; give a tensor of integers, a pair"
        " (values, offsets), a nested tensor or a KeyedJaggedTensor"
    )


def by_feature(features: Any) -> Mapping[str, Any]:
    """Ids by feature: a dict as it is, a KeyedJaggedTensor by its keys."""
    if is_keyed(features):
        parts: Mapping[str, Any] = features.to_dict()
        return parts
    if not isinstance(features, Mapping):
        raise BadInputError(
            f"the collection's input is a {type(features).__name__}; give a dict of ids by"
            " feature, or a KeyedJaggedTensor"
        )
    return features


def is_keyed(value: Any) -> bool:
    """Whether it is a KeyedJaggedTensor."""
    return not isinstance(value, Mapping) and all(
        callable(getattr(value, name, None)) for name in ("keys", "to_dict", "offset_per_key")
    )


def is_jagged(value: Any) -> bool:
    """Whether it is a JaggedTensor of TorchRec: one feature of a KeyedJaggedTensor."""
    return not isinstance(value, (Tensor, Mapping)) and all(
        callable(getattr(value, name, None)) for name in ("values", "offsets", "weights_or_none")
    )


def _of_tensor(ids: Tensor, table: str) -> Ids:
    return Ids(_patterns(ids, table), ids.device)


def _of_pair(values: Tensor, offsets: Tensor, table: str) -> Ids:
    patterns = _patterns(values, table)
    if patterns.ndim != 1:
        raise BadInputError(
            f"table {table!r}: jagged ids have values of {patterns.ndim} dimensions; give 1 with"
            " offsets"
        )
    # Whether the last offset is an end is for the layer to say, as in nn.EmbeddingBag.
    return Ids(patterns, values.device, _patterns(offsets, table))


def _of_nested(ids: Tensor, table: str) -> Ids:
    if ids.dim() != 2:  # noqa: PLR2004 - bags and places
        raise BadInputError(
            f"table {table!r}: nested ids have {ids.dim()} dimensions; give 2, a bag a line"
        )
    if ids.layout == torch.jagged:
        packed = ids.contiguous()
        patterns, offsets = _patterns(packed.values(), table), _patterns(packed.offsets(), table)
    else:
        packed, parts = ids, list(ids.unbind())
        patterns = _patterns(torch.cat(parts), table)
        offsets = np.cumsum([0, *(part.numel() for part in parts)], dtype=np.int64)
    return Ids(patterns, ids.device, offsets, has_end=True, nested=packed)


def _of_jagged(ids: Any, table: str) -> Ids:
    values, weights = ids.values(), ids.weights_or_none()
    offsets = _patterns(ids.offsets(), table)
    patterns = _patterns(values, table)
    bags.checked(offsets, patterns.size, has_end=True, table=table)
    return Ids(patterns, values.device, offsets, has_end=True, weights=weights)


def is_pair(value: Any) -> bool:
    """Whether it is jagged ids, (values, offsets)."""
    return (
        isinstance(value, (tuple, list))
        and len(value) == len(("values", "offsets"))
        and all(isinstance(part, Tensor) and not part.is_nested for part in value)
    )


def _is_integer(ids: Tensor) -> bool:
    return not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)


def _patterns(ids: Tensor, table: str) -> Patterns:
    """int64[ids.shape] on the host."""
    if not _is_integer(ids):
        raise BadInputError(
            f"table {table!r}: ids are {ids.dtype}; cast them to integers, for example with .long()"
        )
    return as_patterns(ids.detach().cpu().numpy(), table)


class Batches:
    """How look-ahead finds ids in batches of torch."""

    @staticmethod
    def named(value: Any) -> Mapping[str, Any] | None:
        """Dicts, and KeyedJaggedTensors by their keys."""
        return by_feature(value) if isinstance(value, Mapping) or is_keyed(value) else None

    @staticmethod
    def ids_of(value: Any, table: str) -> Patterns | None:
        """The ids of anything that a layer takes."""
        if is_pair(value) or isinstance(value, Tensor) or is_jagged(value):
            return as_ids(value, table).patterns
        return None

    @staticmethod
    def first_ids(batch: Any, table: str) -> Patterns | None:
        """Those of the first tensor of integers."""
        return next((as_ids(ids, table).patterns for ids in _integers(batch)), None)


def _integers(batch: Any) -> Iterator[Any]:
    if isinstance(batch, Tensor):
        if _is_integer(batch):
            yield batch
    elif is_jagged(batch) or is_keyed(batch):
        yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _integers(part)
