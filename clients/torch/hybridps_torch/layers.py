"""The layers of one table, with the call signatures of torch's. `Layer` reads, `pooling` reduces.

Unlike torch's, keys are any 64-bit pattern: there is no num_embeddings, and a negative
padding_idx is that key, not a position from the end.
"""

from typing import Any

from torch import Tensor

from hybridps_torch.ids import as_ids
from hybridps_torch.layer import Layer, eager
from hybridps_torch.pooling import Pooling


class _SingleTable(Layer):
    has_features = False

    def __init__(self, ps: Any, spec: Any, padding_idx: int | None, reduce: str) -> None:
        super().__init__(ps, {"ids": spec}, {"ids": padding_idx}, reduce)
        self.padding_idx = padding_idx

    @property
    def table(self) -> str:
        """Name of the table."""
        return self.tables["ids"]

    @property
    def embedding_dim(self) -> int:
        """Columns of a row."""
        return int(self._specs["ids"].dim)

    def load_rows(self, keys: Any, rows: Any) -> None:
        """Sets pretrained values: float32[keys.shape + (dim,)] for any keys, also absent ones.

        Optimizer slots stay, those of new rows are fresh; a padding_idx among the keys is left out.
        Cost: a call for each mebibyte of rows. Raises BadInputError before the first of them.
        """
        self._load("ids", keys, rows)

    def extra_repr(self) -> str:
        """As "table='item', dim=16, padding_idx=0"."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return super().extra_repr() + padding


class Embedding(_SingleTable):
    """float32[ids.shape + (dim,)] on the device of the ids; call signature of nn.Embedding.

    In training mode absent keys are inserted and each occurrence counts; gradients of all layers
    are pushed once, when the backward pass ends. In eval mode absent keys read as zeros.
    Args: padding_idx: reads as zeros; never trained, counted or stored.
        reduce: of the gradients of distributed ranks, "mean" as in DDP, or "sum".
    """

    def __init__(
        self, ps: Any, spec: Any, padding_idx: int | None = None, *, reduce: str = "mean"
    ) -> None:
        super().__init__(ps, spec, padding_idx, reduce)

    @eager
    def forward(self, input: Any) -> Tensor:  # noqa: A002 - torch's name
        """One row an id: for nested ids a nested tensor, for jagged ones a row a value.

        Raises BadInputError for ids that are no integers.
        """
        ids = as_ids(input, self.table)
        return ids.shaped(self._read({"ids": (ids.patterns, ids.device)})["ids"])


class EmbeddingBag(_SingleTable):
    """float32[bags, dim]: rows reduced by bag; call signature and numbers of nn.EmbeddingBag.

    Args: padding_idx: such entries are neither read nor part of a bag; an empty bag is zeros.
        reduce: of the gradients of distributed ranks, "mean" as in DDP, or "sum".
    """

    def __init__(
        self,
        ps: Any,
        spec: Any,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        *,
        reduce: str = "mean",
    ) -> None:
        self._pooling = Pooling(spec.name, mode, include_last_offset)
        super().__init__(ps, spec, padding_idx, reduce)

    @property
    def mode(self) -> str:
        """How a bag is reduced: "sum", "mean" or "max"."""
        return self._pooling.mode

    @property
    def include_last_offset(self) -> bool:
        """Whether offsets end with the number of ids."""
        return self._pooling.include_last_offset

    @eager
    def forward(
        self,
        input: Any,  # noqa: A002 - torch's name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """One row a bag: ids are 2-D, a bag a line; or 1-D with the offset where each bag begins,
        also as a pair (ids, offsets); or nested; or a KeyedJaggedTensor of one key.

        per_sample_weights: shape of the ids, mode "sum" only; differentiable.
        Raises: BadInputError for ids, offsets or weights that do not fit; nothing is read then.
        """
        bags = self._pooling.bags(input, offsets, per_sample_weights, self._padding["ids"])
        rows = self._read({"ids": (bags.patterns, bags.device)})["ids"]
        return self._pooling.reduce(bags, rows)

    def extra_repr(self) -> str:
        """As "table='item', dim=16, mode='mean'"."""
        return f"{super().extra_repr()}, mode={self.mode!r}"
