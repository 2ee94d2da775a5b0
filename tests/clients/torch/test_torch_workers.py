"""Goal: layers work in DataLoader workers, forked or spawned. Method: a real server and workers."""

import pytest
import torch
from hybridps_torch import Embedding
from torch.utils.data import DataLoader, Dataset

import hybridps as hps

support = pytest.importorskip("support.server")

KEYS = 32


class Vectors(Dataset):
    """Reads rows where it runs; spawned workers get it by pickle."""

    def __init__(self, layer):
        self.layer = layer

    def __len__(self):
        return KEYS

    def __getitem__(self, key):
        return self.layer(torch.tensor(key)).detach()


@pytest.fixture
def server(tmp_path):
    with support.ServerProcess(tmp_path / "data") as process:
        yield process


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_workers_read_rows_while_the_parent_trains(server, spec, start):
    with hps.connect(server.url) as ps:
        layer = Embedding(ps, spec())
        layer(torch.arange(KEYS)).square().sum().backward()
        trained = ps.table("item").lookup(range(KEYS))
        absent = torch.tensor([KEYS])
        layer.eval()
        loader = DataLoader(Vectors(layer), 8, num_workers=2, multiprocessing_context=start)
        for number, rows in enumerate(loader):
            wanted = torch.from_numpy(trained[8 * number : 8 * number + 8])
            assert torch.equal(rows, wanted)
            assert not layer(absent).any()
        assert len(ps.table("item")) == KEYS
        layer.train()
        layer(absent).sum().backward()
        assert len(ps.table("item")) == KEYS + 1
