"""Goal: a click model trained through a server is as good as in plain torch, and its weights do not
depend on how little DRAM there is.

Method: same initial rows, order, optimizer and seed on both sides; the reference forgets rows that
were never trained, because a served table answers zeros for them. Census and a planted log always;
criteo60k and ml1m where the shared data are (HYBRIDPS_SHARED, or `shared` beside the checkout).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from support.sets import shared

import hybridps as hps

torch = pytest.importorskip("torch")
pytest.importorskip("hybridps_torch")
pytest.importorskip("tqdm")

import hybridps_torch  # noqa: E402

from hybridps.demo import datasets, models, sizing  # noqa: E402
from hybridps.demo.accuracy import table_sizes  # noqa: E402
from hybridps.demo.planted import PlantedLog  # noqa: E402
from hybridps.demo.reference import TorchTables  # noqa: E402
from hybridps.demo.server import MIB, Server  # noqa: E402
from hybridps.demo.training import Trainer, batches, signed, specs  # noqa: E402

SEED = 3
DIM = 16
AUC_DIFFERENCE_MAX = 1e-4
ROOMY_BYTES = 512 * MIB
# torch's sparse Adagrad says once that it does not check what it built itself.
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums of one thread have one order: what is compared bit by bit must not depend on luck."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def census() -> datasets.Dataset:
    """Plain columns and pairs: the triples triple the time and change nothing here."""
    full = datasets.census()
    pairs = full.singles * (full.singles - 1) // 2
    return replace(full, keys=np.ascontiguousarray(full.keys[:, : full.singles + pairs]))


def planted() -> datasets.Dataset:
    return PlantedLog(100_000, seed=SEED).dataset(40_000, 10_000)


def served(ps: hps.ParameterServer, data: datasets.Dataset, name: str) -> Trainer:
    model = models.build(name, data, DIM, SEED)
    layers = hybridps_torch.EmbeddingCollection(ps, specs(model, data.rate, SEED))
    return Trainer(model, layers, signed(data.keys), data)


def plain(data: datasets.Dataset, name: str) -> tuple[Trainer, TorchTables]:
    model = models.build(name, data, DIM, SEED)
    tables = TorchTables(specs(model, data.rate, SEED), data)
    return Trainer(model, tables, tables.ids, data, tables.optimizer), tables


def compare(data: datasets.Dataset, name: str, batch: int) -> tuple[float, float]:
    """(AUC in plain torch, AUC through a server) after one pass."""
    reference, tables = plain(data, name)
    reference.train(batches(data.train, batch, 1, SEED))
    tables.forget_untrained()
    with Server(ROOMY_BYTES) as server, hps.connect(server.url, timeout=60.0) as ps:
        trainer = served(ps, data, name)
        trainer.train(batches(data.train, batch, 1, SEED))
        return reference.test_auc(data, batch), trainer.test_auc(data, batch)


@pytest.mark.parametrize("name", ["deepfm", "widedeep", "dlrm"])
def test_planted_log_as_in_plain_torch(name: str) -> None:
    data = planted()
    theirs, ours = compare(data, name, 1024)
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert data.bayes_auc is not None
    assert 0.55 < ours < data.bayes_auc, "it learnt something, and no more than there is"


@pytest.mark.parametrize(("name", "learnt"), [("widedeep", 0.90), ("deepfm", 0.89), ("dlrm", 0.89)])
def test_census_as_in_plain_torch(name: str, learnt: float) -> None:
    theirs, ours = compare(census(), name, 1024)
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert ours > learnt


@pytest.mark.parametrize(
    ("source", "name", "rate", "learnt"),
    [
        ("criteo60k", "deepfm", 0.02, 0.74),
        ("criteo60k", "dlrm", 0.02, 0.70),
        ("ml1m", "deepfm", 0.05, 0.79),
        ("ml100k", "deepfm", 0.05, 0.65),
    ],
)
def test_real_logs_as_in_plain_torch(source: str, name: str, rate: float, learnt: float) -> None:
    data = replace(shared(source), rate=rate)
    theirs, ours = compare(data, name, 4096 if source == "ml1m" else 1024)
    print(f"{source} {name}: plain {theirs:.5f}, through the server {ours:.5f}")
    assert abs(ours - theirs) <= AUC_DIFFERENCE_MAX
    assert ours > learnt


def weights(data: datasets.Dataset, share: float | None) -> tuple[np.ndarray, list, dict[str, int]]:
    """(rows of all keys, dense weights, counters) after a pass with this share of rows in DRAM."""
    model = models.build("deepfm", data, DIM, SEED)
    sizes = table_sizes(model, specs(model, data.rate, SEED), data)
    dram = ROOMY_BYTES if share is None else sizing.store_bytes(sizes, share)
    with Server(dram) as server, hps.connect(server.url, timeout=60.0) as ps:
        trainer = served(ps, data, "deepfm")
        if share is not None:
            for size in sizes:
                ps.table(size.spec.name).alter(dram=size.table_bytes(share))
        trainer.train(batches(data.train, 1024, 1, SEED))
        rows = ps.table("features").lookup(np.unique(data.keys))
        dense = [p.detach().numpy().copy() for p in trainer.model.parameters()]
        return rows, dense, ps.stats()


@pytest.mark.parametrize("source", ["planted", "criteo60k"])
def test_weights_do_not_depend_on_dram(source: str) -> None:
    data = planted() if source == "planted" else shared(source)
    all_rows, all_dense, _ = weights(data, None)
    few_rows, few_dense, stats = weights(data, 0.05)
    assert np.array_equal(all_rows, few_rows)
    assert all(np.array_equal(a, b) for a, b in zip(all_dense, few_dense, strict=True))
    assert stats["evictions"] > 0
    assert stats["device_reads"] > 0
    assert stats["probes"] <= stats["unique_keys"]
    assert stats["device_reads"] <= stats["cache_misses"]
