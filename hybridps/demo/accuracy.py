"""Part one: real data, through a server whose rows do not fit its DRAM, beside plain torch.

Both sides start from the same rows and see the same batches in the same order, in alternating
segments, so that a busy machine slows both alike and the two AUCs can be compared digit by digit.
"""

from __future__ import annotations

from dataclasses import dataclass

import hybridps_torch
import numpy as np
import torch

import hybridps as hps
from hybridps.demo import models, sizing
from hybridps.demo.command import Options
from hybridps.demo.datasets import Dataset
from hybridps.demo.progress import Progress
from hybridps.demo.reference import TorchTables
from hybridps.demo.server import Server
from hybridps.demo.training import Trainer, alternate, batches, signed, specs

SEGMENT_STEPS = 8


@dataclass(frozen=True)
class Accuracy:
    """What part one found."""

    data: str
    model: str
    samples: int
    columns: int
    rows: int
    rows_dram: int
    dram_limit: int
    dram_bytes: int
    nvme_bytes: int
    evictions: int
    device_reads: int
    auc_torch: float
    auc_server: float
    samples_s_torch: float
    samples_s_server: float


def run(options: Options, dataset: Dataset) -> Accuracy:
    """Trains both sides and compares them."""
    plain_model = models.build(options.model, dataset, options.dim, options.seed)
    tables = specs(plain_model, options.rate or dataset.rate, options.seed)
    sizes = table_sizes(plain_model, tables, dataset)
    rows = sum(size.rows for size in sizes)
    reference = TorchTables(tables, dataset)
    plain = Trainer(plain_model, reference, reference.ids, dataset, reference.optimizer)
    steps = list(batches(dataset.train, options.batch, options.epochs, options.seed))
    samples = sum(map(len, steps))
    with (
        Server(sizing.store_bytes(sizes, options.share), directory=options.directory) as server,
        hps.connect(server.url) as ps,
        Progress(f"{dataset.name}: {rows:,} ids", 2 * samples, shown=options.bars) as bar,
    ):
        capped = {s.spec.name: sizing.capped(s, options.share) for s in sizes}
        served_model = models.build(options.model, dataset, options.dim, options.seed)
        layers = hybridps_torch.EmbeddingCollection(ps, capped)
        served = Trainer(served_model, layers, signed(dataset.keys), dataset)
        seconds = alternate([plain, served], steps, SEGMENT_STEPS, bar.advance)
        reference.forget_untrained()
        batch = max(options.batch, 4096)
        aucs = [trainer.test_auc(dataset, batch) for trainer in (plain, served)]
        stats = ps.stats()
    rates = [samples / sum(s) for s in seconds]
    return Accuracy(
        dataset.name, options.model, samples, dataset.keys.shape[1], stats["keys"],
        stats["rows_dram"], stats["dram_limit"], stats["dram_bytes"], stats["nvme_bytes"],
        stats["evictions"], stats["device_reads"], *aucs, *rates,
    )  # fmt: skip


def table_sizes(
    model: models.ClickModel, tables: dict[str, hps.TableSpec], dataset: Dataset
) -> list[sizing.TableSize]:
    """Rows each table will have once every training sample was seen."""
    ids = model.ids(torch.from_numpy(signed(dataset.keys[dataset.train])))
    return [
        sizing.TableSize(spec, len(np.unique(ids[name].numpy()))) for name, spec in tables.items()
    ]
