"""Goal: two ranks push what one process pushes for the joint batch. Method: two processes with
gloo and one server; SGD of rate 1 shows in the rows what was pushed."""

import multiprocessing

import numpy as np
import pytest
import torch
from hybridps_torch import Embedding, EmbeddingBag, Optimizer
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import hybridps as hps

support = pytest.importorskip("support.server")

SAMPLES, DIM, WORLD = 32, 4, 2
# name -> (reduce, with an Optimizer, options of DDP)
CASES = {
    "plain": ("mean", False, {}),
    "bucketed": ("mean", False, {"gradient_as_bucket_view": True}),
    "unused": ("mean", True, {"find_unused_parameters": True}),
    "static": ("mean", False, {"static_graph": True}),
    "summed": ("sum", True, {}),
}


def build(ps, name, reduce):
    torch.manual_seed(0)
    spec = hps.TableSpec(name, dim=DIM, optimizer=hps.SGD(1.0), seed=5)
    other = hps.TableSpec(name + "-bag", dim=DIM, optimizer=hps.SGD(1.0), seed=6)
    return torch.nn.ModuleDict(
        {
            "rows": Embedding(ps, spec, reduce=reduce),
            "bag": EmbeddingBag(ps, other, reduce=reduce),
            "head": torch.nn.Linear(DIM, 1),
        }
    )


class Model(torch.nn.Module):
    def __init__(self, parts):
        super().__init__()
        self.parts = parts

    def forward(self, ids):
        vectors = self.parts["rows"](ids) + self.parts["bag"](ids[:, None] + 100)
        return self.parts["head"](vectors).squeeze(-1)


def train(model, ids, with_optimizer):
    sparse = Optimizer(model) if with_optimizer else None
    dense = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        dense.zero_grad()
        (model(ids) - 1).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6, norm_type=float("inf"))
        dense.step()
        if sparse is not None:
            sparse.step()
        if distributed.is_initialized():
            distributed.barrier()


def rank(number, url, rendezvous, results):
    distributed.init_process_group("gloo", init_method=rendezvous, rank=number, world_size=WORLD)
    with hps.connect(url) as ps:
        for name, (reduce, with_optimizer, options) in CASES.items():
            model = DistributedDataParallel(Model(build(ps, name, reduce)), **options)
            train(model, torch.arange(SAMPLES).chunk(WORLD)[number], with_optimizer)
            results.put((name, model.module.parts["head"].weight.detach().numpy().tolist()))
    distributed.destroy_process_group()


def test_ranks_train_as_one_process(tmp_path):
    ids = np.arange(SAMPLES)
    context = multiprocessing.get_context("spawn")
    with support.ServerProcess(tmp_path / "data") as server, hps.connect(server.url) as ps:
        results = context.Queue()
        arguments = (server.url, f"file://{tmp_path}/rendezvous", results)
        ranks = [context.Process(target=rank, args=(i, *arguments)) for i in range(WORLD)]
        for process in ranks:
            process.start()
        weights = [results.get(timeout=120) for _ in range(WORLD * len(CASES))]
        for process in ranks:
            process.join(60)
        for name, (reduce, _, _) in CASES.items():
            factor = WORLD if reduce == "sum" else 1
            one = Model(build(ps, "one-" + name, "mean"))
            if reduce == "sum":
                one.parts["rows"].ps.table("one-" + name).set_learning_rate(float(WORLD))
                ps.table("one-" + name + "-bag").set_learning_rate(float(WORLD))
            train(one, torch.from_numpy(ids), False)
            for suffix, keys in (("", ids), ("-bag", ids + 100)):
                joint = ps.table("one-" + name + suffix).lookup(keys)
                ours = ps.table(name + suffix).lookup(keys)
                np.testing.assert_allclose(ours, joint, rtol=1e-4, atol=1e-6, err_msg=name)
            wanted = one.parts["head"].weight.detach().numpy()
            for told, got in weights:
                if told == name:
                    np.testing.assert_allclose(got, wanted, rtol=1e-4, err_msg=f"{name} {factor}")


def test_an_unknown_reduction_is_named(tmp_path):
    with (
        hps.connect(f"local:{tmp_path}/store", dram="16MiB") as ps,
        pytest.raises(hps.BadInputError, match=r"reduce is 'max'.*'sum'"),
    ):
        Embedding(ps, hps.TableSpec("item", 4, hps.SGD(1.0)), reduce="max")
