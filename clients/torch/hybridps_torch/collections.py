"""Collections: several features at once, read by one call to each server."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hybridps.errors import BadInputError
from hybridps_torch.ids import as_ids, by_feature
from hybridps_torch.layer import Layer, eager
from hybridps_torch.pooling import Pooling

Padding = int | None | Mapping[str, int | None]


class _Collection(Layer):
    def __init__(
        self, ps: Any, specs: Mapping[str, Any], padding_idx: Padding, reduce: str
    ) -> None:
        if not specs:
            raise BadInputError("the collection has no features; give {feature: spec}")
        if not isinstance(padding_idx, Mapping):
            padding_idx = dict.fromkeys(specs, padding_idx)
        for feature in padding_idx:
            _check(feature, specs)
        super().__init__(ps, specs, padding_idx, reduce)
        self.padding_idx = dict(padding_idx)

    def load_rows(self, feature: str, keys: Any, rows: Any) -> None:
        """Sets pretrained values of a feature's table; as `Embedding.load_rows`."""
        _check(feature, self.tables)
        self._load(feature, keys, rows)

    def _features(self, given: Any) -> Mapping[str, Any]:
        features = by_feature(given)
        for feature in features:
            _check(feature, self.tables)
        return features


class EmbeddingCollection(_Collection):
    """Ids by feature in, vectors by feature out, one call. Features may share a table.

    A forward may name any of the features. Args: padding_idx: of all features, or by feature.
    """

    def __init__(
        self,
        ps: Any,
        specs: Mapping[str, Any],
        *,
        padding_idx: Padding = None,
        reduce: str = "mean",
    ) -> None:
        super().__init__(ps, specs, padding_idx, reduce)

    @eager
    def forward(self, features: Any) -> dict[str, Tensor]:
        """Of each feature what `Embedding` gives for its ids, on the device of the ids.

        features: dict of anything that `Embedding` takes, or a KeyedJaggedTensor.
        """
        given = self._features(features)
        ids = {feature: as_ids(part, self.tables[feature]) for feature, part in given.items()}
        rows = self._read({feature: (part.patterns, part.device) for feature, part in ids.items()})
        return {feature: part.shaped(rows[feature]) for feature, part in ids.items()}


class EmbeddingBagCollection(_Collection):
    """Ids by feature in, float32[bags, dim] by feature out, one call. Features may share a table.

    Args: mode: of all features; "sum", "mean" or "max". padding_idx: of all features, or by
        feature; such ids are neither read nor part of a bag. include_last_offset: whether offsets
        of pairs (values, offsets) end with the number of values, as in nn.EmbeddingBag.
    """

    def __init__(
        self,
        ps: Any,
        specs: Mapping[str, Any],
        mode: str = "mean",
        *,
        padding_idx: Padding = None,
        include_last_offset: bool = False,
        reduce: str = "mean",
    ) -> None:
        pooling = {f: Pooling(s.name, mode, include_last_offset) for f, s in specs.items()}
        super().__init__(ps, specs, padding_idx, reduce)
        self.mode = mode
        self._pooling = pooling

    @eager
    def forward(
        self, features: Any, per_sample_weights: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Of each feature what `EmbeddingBag` gives for its ids, on the device of the ids.

        features: dict of anything that `EmbeddingBag` takes, or a KeyedJaggedTensor, whose
        weights are used. per_sample_weights: by feature, of the ids' shape, mode "sum" only.
        """
        given, weights = self._features(features), per_sample_weights or {}
        for feature in weights:
            _check(feature, given)
        bags = {
            f: self._pooling[f].bags(part, None, weights.get(f), self._padding[f])
            for f, part in given.items()
        }
        rows = self._read({f: (part.patterns, part.device) for f, part in bags.items()})
        return {f: self._pooling[f].reduce(part, rows[f]) for f, part in bags.items()}

    def extra_repr(self) -> str:
        """As "table='item', dim=16, mode='mean'"."""
        return f"{super().extra_repr()}, mode={self.mode!r}"


def _check(feature: object, known: Mapping[str, object]) -> None:
    if feature not in known:
        raise BadInputError(
            f"feature {feature!r} is not in this collection; it has {sorted(known)}"
        )
