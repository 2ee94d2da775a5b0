"""Goal: how many servers share the keys, and how much DRAM each has, does not show in any bit.
Method: the same training program over one server, over two and three static shards, and in this
process with room for everything."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from support.clients import connect, urls_of
from support.server import ServerProcess
from support.training import Program, assert_same, undisturbed

STEPS = 60


@pytest.mark.parametrize("shards", [1, 2, 3])
@pytest.mark.parametrize("kind", ["tcp", "tcp-aio"])
def test_any_number_of_servers_gives_the_same_bits(tmp_path: Path, kind: str, shards: int) -> None:
    with contextlib.ExitStack() as held:
        servers = [
            held.enter_context(
                ServerProcess(tmp_path / f"d{n}", "--shard", f"{n}/{shards}", dram="8MiB")
            )
            for n in range(shards)
        ]
        ps = held.enter_context(connect(kind, urls_of(servers)))
        program = Program(ps)
        for _ in range(STEPS):
            program.step()
        stats = ps.stats()
        assert stats["rows_nvme"] > 0, "all rows had room in DRAM"
        assert stats["dram_limit"] == shards * (8 << 20)
        with undisturbed(program, tmp_path / "plain") as plain:
            for name, table in program.tables.items():
                assert table.size() == len(plain.tables[name])
                pages = np.concatenate([np.zeros(0, np.uint64), *table.keys()])
                expected = np.concatenate([*plain.tables[name].keys()])
                assert np.array_equal(np.sort(pages), np.sort(expected))
            assert_same(program.rows(), plain.rows())
