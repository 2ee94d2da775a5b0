"""Goal: what works on the files of checkpoints alone: paths, periods, lists, verification, pruning.

Method: a store in this process makes some; files are damaged; foreign ones lie beside them.
"""

from pathlib import Path

import numpy as np
import pytest

import hybridps as hps
from hybridps.checkpoints import directory_of


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A directory with a full checkpoint and two deltas on it."""
    with hps.connect(f"local:{tmp_path / 'store'}", dram="8MiB", nvme="64MiB") as ps:
        table = ps.create_table(hps.TableSpec("t", 4, hps.Adagrad(0.1)))
        for step in range(3):
            table.apply_gradients(np.arange(50 * step, 50 * step + 60), np.ones((60, 4), "f4"))
            ps.checkpoint(tmp_path / "saved", step=step, extra={"epoch": step})
    return tmp_path / "saved"


def test_a_list_tells_what_the_manifests_say(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "older").mkdir()
    found = hps.checkpoints(saved)
    assert [(made.kind, made.step, made.extra) for made in found] == [
        ("full", 0, {"epoch": 0}),
        ("delta", 1, {"epoch": 1}),
        ("delta", 2, {"epoch": 2}),
    ]
    assert [made.tables for made in found] == [{"t": 60}, {"t": 110}, {"t": 160}]
    assert [made.parent for made in found] == [None, found[0].id, found[1].id]
    assert [made.id for made in found] == sorted(made.id for made in found)
    assert hps.checkpoints(saved.as_uri()) == found
    assert hps.checkpoints(saved / "absent") == []
    assert hps.verify_checkpoint(saved) == found[2]
    assert hps.verify_checkpoint(saved, found[1].id) == found[1]


def test_a_missing_manifest_is_told_and_nothing_older_is_taken(saved: Path, tmp_path: Path) -> None:
    newest = hps.checkpoints(saved)[-1].id
    (saved / newest / "MANIFEST").unlink()
    with pytest.warns(UserWarning, match=f"{newest}.*is missing"):
        assert len(hps.checkpoints(saved)) == 2
    with pytest.raises(hps.CorruptionError, match=newest):
        hps.verify_checkpoint(saved)
    with (
        hps.connect(f"local:{tmp_path / 'other'}", dram="8MiB", nvme="64MiB") as ps,
        pytest.raises(hps.CorruptionError, match=newest),
    ):
        ps.restore(saved)
    with pytest.raises(hps.CorruptionError, match=newest):
        hps.prune_checkpoints(saved, keep=1)


def test_pruning_keeps_what_is_needed(saved: Path, tmp_path: Path) -> None:
    assert hps.prune_checkpoints(saved, keep=1) == []
    old = [made.id for made in hps.checkpoints(saved)]
    with hps.connect(f"local:{tmp_path / 'store'}") as ps:
        full = ps.checkpoint(saved, full=True)
    assert full.kind == "full"
    assert full.parent is None
    assert hps.prune_checkpoints(saved, keep=1, every="365d") == []
    assert hps.prune_checkpoints(saved, keep=1) == old
    assert [made.id for made in hps.checkpoints(saved)] == [full.id]
    assert [file.name for file in saved.iterdir()] == [full.id]


def test_what_a_crash_left_is_passed_over(saved: Path) -> None:
    unfinished = saved / "29990101T000000.000Z"
    unfinished.mkdir()
    (unfinished / "INCOMPLETE").touch()
    (unfinished / "shard-0-of-1.tmp").write_bytes(b"half")
    assert len(hps.checkpoints(saved)) == 3
    assert hps.verify_checkpoint(saved).step == 2


@pytest.mark.parametrize("keep", [0, -1, 2.5, True, "3"])
def test_keep_is_a_number_of_checkpoints(saved: Path, keep: object) -> None:
    with pytest.raises(hps.BadInputError, match="keep"):
        hps.prune_checkpoints(saved, keep=keep)  # type: ignore[arg-type]
    with pytest.raises(hps.BadInputError, match="every"):
        hps.prune_checkpoints(saved, every="daily")
    assert len(hps.checkpoints(saved)) == 3


def test_a_path_is_a_directory(tmp_path: Path) -> None:
    assert directory_of(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"
    assert directory_of(tmp_path) == str(tmp_path)
    for bad in ("", "s3://bucket/x", "file://host/x"):
        with pytest.raises(hps.BadInputError, match="path"):
            directory_of(bad)
