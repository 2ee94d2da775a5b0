"""In process: a table of hybridps beside torch's static Embedding, one thread each.

    python benchmarks/inprocess.py [--keys 1000000] [--rounds 30]

Look-up: the same ids, ours by 64-bit key through the hash index, torch's by row number. Training:
read, then apply the same given gradients with exact Adagrad; torch by `Embedding(sparse=True)`.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable

import numpy as np
import torch
from yardstick import BATCH, Workload, interleaved, print_machine, print_result

import hybridps as hps

BATCHES = 16
RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--dims", type=lambda s: [int(d) for d in s.split(",")], default=[16, 64])
    flags = parser.parse_args()
    torch.set_num_threads(1)
    # torch's Adagrad builds sparse tensors and then warns that it does not check what it built.
    warnings.filterwarnings("ignore", "Sparse invariant checks", UserWarning)
    print_machine("torch")
    for dim in flags.dims:
        compare(flags.keys, dim, flags.rounds)


def compare(keys: int, dim: int, rounds: int) -> None:
    work = Workload(keys)
    all_keys = work.all_keys()
    rows = [work.rows() for _ in range(BATCHES)]
    gradients = [work.random.standard_normal((BATCH, dim), np.float32) * 0.01 for _ in range(4)]
    print(f"\n{len(all_keys):,} keys, dim {dim}, batches of {BATCH:,} ids, Zipf 1.05")
    with (
        tempfile.TemporaryDirectory(prefix="hybridps-bench-") as directory,
        hps.connect(f"local:{directory}", dram=f"{keys * dim * 12 // 2**20 + 256}MiB",
                    durability="none", threads=1) as ps,
    ):  # fmt: skip
        table = ps.create_table(hps.TableSpec("bench", dim=dim, optimizer=hps.Adagrad(RATE)))
        for low in range(0, len(all_keys), BATCH):
            table.lookup_or_insert(all_keys[low : low + BATCH])
        batches = [all_keys[r] for r in rows]
        read = {"hybridps": lambda i: table.lookup(batches[i % BATCHES]),
                "torch": torch_lookup(len(all_keys), dim, rows)}  # fmt: skip
        report("lookup", dim, interleaved(read, rounds))

        def step(i: int) -> None:
            table.lookup_or_insert(batches[i % BATCHES])
            table.apply_gradients(batches[i % BATCHES], gradients[i % 4])

        train = {"hybridps": step, "torch": torch_train(len(all_keys), dim, rows, gradients)}
        report("train", dim, interleaved(train, rounds))


def torch_lookup(n: int, dim: int, rows: list[np.ndarray]) -> Callable[[int], object]:
    embedding = torch.nn.Embedding(n, dim)
    ids = [torch.from_numpy(r) for r in rows]

    @torch.inference_mode()
    def lookup(i: int) -> object:
        return embedding(ids[i % BATCHES])

    return lookup


def torch_train(
    n: int, dim: int, rows: list[np.ndarray], gradients: list[np.ndarray]
) -> Callable[[int], object]:
    embedding = torch.nn.Embedding(n, dim, sparse=True)
    optimizer = torch.optim.Adagrad(embedding.parameters(), lr=RATE)
    ids = [torch.from_numpy(r) for r in rows]
    given = [torch.from_numpy(g) for g in gradients]

    def step(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        embedding(ids[i % BATCHES]).backward(given[i % 4])
        optimizer.step()

    return step


def report(what: str, dim: int, times: dict) -> None:
    ours, theirs = times["hybridps"], times["torch"]
    print(f"{what:7} hybridps {ours.per_id(BATCH)}\n{'':7} torch    {theirs.per_id(BATCH)}")
    print_result(
        f"inprocess-{what}", dim=dim, cpu_ns_per_id=ours.cpu_s / BATCH * 1e9,
        torch_cpu_ns_per_id=theirs.cpu_s / BATCH * 1e9, cpu_ratio=ours.cpu_s / theirs.cpu_s,
        speedup=theirs.cpu_s / ours.cpu_s,
    )  # fmt: skip


if __name__ == "__main__":
    main()
