"""Goal: ids on an accelerator give vectors there and the same training. Method: beside the host."""

import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, Optimizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")


@pytest.mark.parametrize("layer", [Embedding, EmbeddingBag])
@pytest.mark.parametrize("is_scaled", [False, True])
def test_same_rows_as_on_the_host(ps, spec, layer, is_scaled):
    def train(table, device):
        model = layer(ps, spec(table), padding_idx=3).to(device)
        sparse = Optimizer(model) if is_scaled else None
        scaler = torch.amp.GradScaler(device, enabled=is_scaled)
        for step in range(4):
            ids = torch.arange(12).roll(step).view(4, 3).to(device)
            vectors = model(ids)
            assert vectors.device == ids.device
            scaler.scale(vectors.square().sum()).backward()
            if sparse is not None:
                scaler.step(sparse)
                scaler.update()
                sparse.zero_grad()
        return torch.from_numpy(ps.table(table).lookup(range(12)))

    torch.testing.assert_close(train("there", "cuda"), train("here", "cpu"))
