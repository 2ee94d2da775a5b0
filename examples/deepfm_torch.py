"""DeepFM in PyTorch: the dense part is the user's, rows of all ids live in one table.

python examples/deepfm_torch.py URL
"""

import sys

import hybridps_torch
import torch
from clicks import COLUMNS, auc, clicks
from torch.utils.data import DataLoader, TensorDataset

import hybridps as hps

DIM, BATCH = 8, 256


class DeepFM(torch.nn.Module):
    """First order + factorisation machine + a network, over one vector for each column."""

    def __init__(self, rows: torch.nn.Module) -> None:
        super().__init__()
        # Each row: a vector, and the weight of the id itself.
        self.rows = rows
        self.network = torch.nn.Sequential(
            torch.nn.Linear(len(COLUMNS) * DIM, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of int64[batch, columns]."""
        rows = self.rows(ids)
        x, first_order = rows[..., :DIM], rows[..., DIM].sum(1)
        total = x.sum(1)
        pairs = 0.5 * (total.square() - x.square().sum(1)).sum(1)
        return first_order + pairs + self.network(x.flatten(1)).squeeze(1)


def main(url: str) -> None:
    """Trains for two passes and prints the AUC on samples that were not trained on."""
    torch.manual_seed(0)
    ids, label = (torch.from_numpy(part) for part in clicks(20_000))
    test_ids, test_label = clicks(5_000, seed=1)
    with hps.connect(url) as ps:
        spec = hps.TableSpec("deepfm", DIM + 1, hps.Adagrad(0.1), hps.Normal(std=0.01))
        model = DeepFM(hybridps_torch.Embedding(ps, spec))
        dense = torch.optim.Adam(model.parameters(), lr=1e-3)
        # With it backward() accumulates and step() pushes; its lr is that of the table.
        sparse = hybridps_torch.Optimizer(model)
        schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.8) for o in (dense, sparse)]
        loader = DataLoader(TensorDataset(ids, label), BATCH, shuffle=True)
        loss_of = torch.nn.BCEWithLogitsLoss()
        for epoch in range(2):
            for batch, target in hybridps_torch.prefetch(loader, model):
                loss = loss_of(model(batch), target)
                for optimizer in (dense, sparse):
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in (dense, sparse):
                    optimizer.step()
            for schedule in schedules:
                schedule.step()
            model.eval()
            with torch.no_grad():
                score = model(torch.from_numpy(test_ids)).numpy()
            model.train()
            rows = len(ps.table("deepfm"))
            print(f"pass {epoch + 1}: AUC {auc(test_label, score):.4f}, {rows} rows")


if __name__ == "__main__":
    main(sys.argv[1])
