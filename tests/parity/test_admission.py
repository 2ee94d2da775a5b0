"""Goal: a table that gives rows to keys that came twice alone learns what plain torch learns under
the same rule, in a third of the rows.

Method: the reference counts ids of each batch before it is read; rows of ids below the count start
where ours would, are not trained, and are zeros when the model is tested. Same initial rows, order,
optimizer and seed on both sides. A planted log always; criteo60k where the shared data are.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.sets import shared

import hybridps as hps

torch = pytest.importorskip("torch")
pytest.importorskip("hybridps_torch")
pytest.importorskip("tqdm")

import hybridps_torch  # noqa: E402

from hybridps.demo import datasets, models  # noqa: E402
from hybridps.demo.planted import PlantedLog  # noqa: E402
from hybridps.demo.reference import TorchTables  # noqa: E402
from hybridps.demo.server import MIB, Server  # noqa: E402
from hybridps.demo.training import Trainer, batches, signed, specs  # noqa: E402

SEED = 3
BATCH = 1024
COUNT = 2
AUC_DIFFERENCE_MAX = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of one thread have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class CountingTables(TorchTables):
    """Trains rows of ids that came at least `COUNT` times, this batch included."""

    def __init__(self, specs: Mapping[str, hps.TableSpec], dataset: datasets.Dataset) -> None:
        super().__init__(specs, dataset)
        self.counts = {
            name: torch.zeros(len(table.weight), dtype=torch.int64)
            for name, table in self.tables.items()
        }
        for name, table in self.tables.items():
            table.weight.register_hook(lambda gradient, name=name: self._admitted(name, gradient))

    def forward(self, ids: Mapping[str, Any]) -> dict[str, Any]:
        """Counts, in training."""
        if self.training:
            for name, rows in ids.items():
                counts = self.counts[name]
                counts += torch.bincount(rows.reshape(-1), minlength=len(counts))
        return super().forward(ids)

    def _admitted(self, name: str, gradient: Any) -> Any:
        gradient = gradient.coalesce()
        rows = gradient.indices()[0]
        of = self.counts[name][rows] >= COUNT
        values = gradient.values()[of]
        return torch.sparse_coo_tensor(rows[of].unsqueeze(0), values, gradient.shape)

    @torch.no_grad()
    def forget_untrained(self) -> None:
        """Zeroes what a served table has no row for."""
        for name, table in self.tables.items():
            table.weight[self.counts[name] < COUNT] = 0.0


def compare(data: datasets.Dataset, dram: int) -> tuple[float, float, dict[str, int], int]:
    """(AUC in plain torch, AUC through a server, its counters, keys that came in training)."""
    model = models.build("deepfm", data, 16, SEED)
    tables = CountingTables(specs(model, data.rate, SEED), data)
    reference = Trainer(model, tables, tables.ids, data, tables.optimizer)
    reference.train(batches(data.train, BATCH, 1, SEED))
    tables.forget_untrained()
    model = models.build("deepfm", data, 16, SEED)
    admitting = {
        name: replace(spec, admission=hps.MinCount(COUNT))
        for name, spec in specs(model, data.rate, SEED).items()
    }
    with Server(dram) as server, hps.connect(server.url, timeout=60.0) as ps:
        layers = hybridps_torch.EmbeddingCollection(ps, admitting)
        ours = Trainer(model, layers, signed(data.keys), data)
        ours.train(batches(data.train, BATCH, 1, SEED))
        for name in admitting:
            rows = int((tables.counts[name] >= COUNT).sum())
            assert len(ps.table(name)) == rows, "the reference gave rows to as many"
        keys = len(np.unique(data.keys[data.train]))
        return reference.test_auc(data, BATCH), ours.test_auc(data, BATCH), ps.stats(), keys


def test_planted_log_as_in_torch_with_the_same_rule() -> None:
    data = PlantedLog(100_000, seed=SEED).dataset(30_000, 10_000)
    theirs, ours, stats, _ = compare(data, 64 * MIB)
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert ours > 0.55
    assert stats["gradients_unadmitted"] > 1000


def test_criteo60k_in_a_third_of_the_rows() -> None:
    data = shared("criteo60k")
    theirs, ours, stats, keys = compare(data, 16 * MIB)
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert ours > 0.73
    tables = len(models.build("deepfm", data, 16, SEED).dims())
    assert stats["keys"] <= 0.35 * keys * tables, f"{stats['keys']} rows of {keys * tables}"
    assert stats["keys"] + stats["candidates"] == keys * tables, "all others are counted"
    assert stats["candidates_bytes"] <= 12 * stats["candidates"]
