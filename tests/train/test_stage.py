from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcdl.attempts import AttemptDir
from hpcdl.shards.manifest import Manifest
from hpcdl.train.communicator import Single
from hpcdl.train.guards import AgreedError
from hpcdl.train.stage import staged
from tests.conftest import Hpcdl
from tests.datasets import write_blobs


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_blobs(tmp_path / "data", {"train": 16, "val": 4, "test": 4})


def test_training_reads_the_copy_and_leaves_nothing(tmp_path: Path, manifest: Manifest) -> None:
    attempt = AttemptDir(tmp_path / "attempt")
    attempt.make()
    with staged(manifest, ("train", "val"), str(tmp_path / "disk"), "run", attempt, Single()) as (copy, taken):
        assert copy.folder.parent == tmp_path / "disk"
        assert copy.digest == manifest.digest
        assert not (copy.folder / "test-00000.h5").exists()
        assert taken["staged"]
        read = sum(shard.num_bytes for split in ("train", "val") for shard in manifest.splits[split])
        assert (taken["read_bytes"], taken["num_nodes"]) == (read, 1)
        (note,) = attempt.path.glob("stage-*")
        assert Path(note.read_text()) == copy.folder
    assert not copy.folder.exists()


def test_without_room_the_data_set_is_read_where_it_is(
    tmp_path: Path, manifest: Manifest, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a file").write_text("")
    with staged(manifest, ("train",), str(tmp_path / "a file"), "run", None, Single()) as (used, taken):
        assert used is manifest
        assert not taken["staged"]
    assert "the data set is not staged: " in capsys.readouterr().err


def test_a_damaged_shard_ends_the_training(tmp_path: Path, manifest: Manifest) -> None:
    (manifest.folder / "train-00001.h5").write_bytes(b"")
    with (
        pytest.raises(AgreedError, match=r"train-00001\.h5: the shard was changed"),
        staged(manifest, ("train",), str(tmp_path / "disk"), "run", None, Single()),
    ):
        pass
    assert not list((tmp_path / "disk").iterdir())


@pytest.mark.slow
def test_two_ranks_of_a_node_copy_the_data_set_once_and_train_the_same(
    hpcdl: Hpcdl, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_blobs(workdir / "data", {"train": 16, "val": 4}).folder
    monkeypatch.setenv("TMPDIR", str(workdir / "node disk"))
    (workdir / "node disk").mkdir()
    tiny = [f"--set={pair}" for pair in ("width=2", "depth=1", "epochs=1", "batch_size=4", "log_every=1")]
    for name, flags in {"plain": [], "staged": ["--stage"]}.items():
        result = hpcdl(
            "submit", "unet", "--data", data, *tiny, *flags, "--ntasks-per-node", "2", "--name", name, "--wait"
        )
        assert result.code == 0, result.err
    log = hpcdl("logs", "staged").out
    splits = json.loads((data / "manifest.json").read_text())["splits"]
    used = sum(shard["num_bytes"] for split in ("train", "val") for shard in splits[split]["shards"])
    assert f": {used / 1e6:.1f} MB read for 1 node(s)" in log
    assert not list((workdir / "node disk").glob("hpcdl-stage-*"))
    lines = [
        [
            json.loads(line)["loss"]
            for line in (workdir / "runs" / name / "metrics.jsonl").read_text().splitlines()
            if '"loss"' in line
        ]
        for name in ("plain", "staged")
    ]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 3
