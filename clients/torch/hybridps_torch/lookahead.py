"""`prefetch`: look-ahead over a loader of torch for the layers of a model."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hybridps.errors import BadInputError
from hybridps.layers.lookahead import Feature, Finder, LookAhead
from hybridps_torch.ids import Batches
from hybridps_torch.layer import Layer

Ids = Mapping[str, torch.Tensor] | torch.Tensor


def prefetch(
    loader: Iterable[Any],
    model: nn.Module,
    depth: int = 2,
    ids: Callable[[Any], Ids] | None = None,
) -> LookAhead:
    """The same batches as `loader`, read up to `depth` ahead by a thread that warms their rows.

    A hint: it never inserts or counts, so training results stay identical; where a store does not
    take it, a UserWarning tells so once and the loop goes on. The loop may be left at any time; the
    thread ends when the loader has given the batch that it is at.
    Args: ids: batch -> its ids by feature or table name, or one tensor if the model has one
        feature. None finds them: dicts keyed by feature of a collection, by table, or by the name
        of a layer in the model; with one feature, else, the first tensor of integers in the batch.
    Note: the loader runs ahead, so a data set that draws from the global random generator in this
        process draws at other moments; loaders with workers or a generator of their own do not.
    Raises: BadInputError, at the first batch, when no ids are found in it.
    """
    features = list(_features(model))
    if not features:
        raise BadInputError(
            f"{type(model).__name__} has no layer of hybridps_torch; nothing to look ahead for"
        )
    finder = Finder(features, Batches())
    if ids is None:
        return LookAhead(loader, finder.find, depth)
    return LookAhead(loader, lambda batch: finder.find(batch, ids=ids(batch)), depth)


def _features(model: nn.Module) -> Iterator[Feature]:
    for path, layer in model.named_modules():
        if isinstance(layer, Layer):
            name = path.rpartition(".")[2]
            for feature, table in layer.tables.items():
                alias = feature if layer.has_features else name
                yield Feature(frozenset({alias, table}), layer.ps, table)
