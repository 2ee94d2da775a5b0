"""Embedding layers whose rows live in hybridps. Pure Python: nothing is linked to torch."""

from hybridps_torch.collections import EmbeddingBagCollection, EmbeddingCollection
from hybridps_torch.layers import Embedding, EmbeddingBag
from hybridps_torch.lookahead import prefetch
from hybridps_torch.optimizer import Optimizer

__all__ = [
    "Embedding",
    "EmbeddingBag",
    "EmbeddingBagCollection",
    "EmbeddingCollection",
    "Optimizer",
    "prefetch",
]
