"""Two models that share one table: what one learns about an item, the other starts from.

python examples/two_models.py URL

A click model and a model of purchases train the same rows of items, each with users of its own,
here in one process; several processes do it in the same way, since a table belongs to the servers.
"""

import sys

import hybridps_torch
import torch
from clicks import auc, clicks

import hybridps as hps

DIM = 8


class Match(torch.nn.Module):
    """The dot product of a user and an item, and a bias of the item."""

    def __init__(self, ps: hps.ParameterServer, user: hps.TableSpec, item: hps.TableSpec) -> None:
        super().__init__()
        # One call to the servers for both, and one push.
        self.rows = hybridps_torch.EmbeddingCollection(ps, {"user": user, "item": item})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits of int64[batch, 2]: user and item."""
        rows = self.rows({"user": ids[:, 0], "item": ids[:, 1]})
        return (rows["user"] * rows["item"]).sum(1) + rows["item"][:, 0]


def train(model: torch.nn.Module, ids: torch.Tensor, label: torch.Tensor) -> None:
    """One pass. There are no dense weights, so backward() is all there is to a step."""
    for start in range(0, len(ids), 256):
        part = slice(start, start + 256)
        logits = model(ids[part])
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label[part]).mul(64).backward()


def main(url: str) -> None:
    """Trains the click model; prints how well each model then ranks, before its own training."""
    ids, label = (torch.from_numpy(part) for part in clicks(20_000))
    test_ids, test_label = clicks(5_000, seed=1)
    with hps.connect(url) as ps:

        def spec(name: str) -> hps.TableSpec:
            return hps.TableSpec(name, DIM, hps.Adagrad(0.1), hps.Normal(std=0.1))

        item = spec("item-of-both")
        models = {
            "clicks": Match(ps, spec("user-of-clicks"), item),
            "purchases": Match(ps, spec("user-of-purchases"), item),
        }
        train(models["clicks"], ids, label)
        for name, model in models.items():
            model.eval()
            with torch.no_grad():
                scores = model(torch.from_numpy(test_ids)).numpy()
            print(f"{name}: AUC {auc(test_label, scores):.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
