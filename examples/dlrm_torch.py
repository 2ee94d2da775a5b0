"""DLRM in PyTorch: a table for each column, all read in one pass and pushed in one call.

python examples/dlrm_torch.py URL
"""

import sys

import hybridps_torch
import torch
from clicks import COLUMNS, DENSE, auc, clicks, dense_of
from torch.utils.data import DataLoader, TensorDataset

import hybridps as hps

DIM, BATCH = 8, 256


class DLRM(torch.nn.Module):
    """Dot products between the vectors of all columns and that of the dense features."""

    def __init__(self, vectors: hybridps_torch.EmbeddingCollection) -> None:
        super().__init__()
        self.vectors = vectors
        self.bottom = torch.nn.Sequential(torch.nn.Linear(len(DENSE), DIM), torch.nn.ReLU())
        count = len(COLUMNS) + 1
        self.left, self.right = torch.triu_indices(count, count, offset=1)
        self.top = torch.nn.Sequential(
            torch.nn.Linear(len(self.left) + DIM, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
        )

    def forward(self, ids: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """Logits of int64[batch, columns] and float32[batch, features]."""
        vectors = self.vectors(dict(zip(COLUMNS, ids.unbind(1), strict=True)))
        bottom = self.bottom(dense)
        x = torch.stack([bottom, *(vectors[column] for column in COLUMNS)], dim=1)
        dots = torch.bmm(x, x.transpose(1, 2))[:, self.left, self.right]
        return self.top(torch.cat([bottom, dots], dim=1)).squeeze(1)


def main(url: str) -> None:
    """Trains for three passes and prints the AUC on samples that were not trained on."""
    torch.manual_seed(0)
    ids, label = clicks(20_000)
    test_ids, test_label = clicks(5_000, seed=1)
    rule, start = hps.Adagrad(0.1), hps.Uniform(-0.1, 0.1)
    with hps.connect(url) as ps:
        specs = {name: hps.TableSpec(f"dlrm-{name}", DIM, rule, start) for name in COLUMNS}
        model = DLRM(hybridps_torch.EmbeddingCollection(ps, specs))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        samples = TensorDataset(*map(torch.from_numpy, (ids, dense_of(ids), label)))
        loss_of = torch.nn.BCEWithLogitsLoss()
        for _ in range(3):
            for batch, dense, target in DataLoader(samples, BATCH, shuffle=True):
                optimizer.zero_grad()
                loss_of(model(batch, dense), target).backward()  # pushes the rows of all tables
                optimizer.step()
        model.eval()
        with torch.no_grad():
            score = model(torch.from_numpy(test_ids), torch.from_numpy(dense_of(test_ids)))
        sizes = ", ".join(f"{len(ps.table(spec.name))} of {name}" for name, spec in specs.items())
        print(f"AUC {auc(test_label, score.numpy()):.4f}, rows: {sizes}")


if __name__ == "__main__":
    main(sys.argv[1])
