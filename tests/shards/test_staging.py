from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from hpcdl.errors import FailedError
from hpcdl.shards import staging
from hpcdl.shards.manifest import Manifest, load_manifest
from tests.datasets import write_blobs


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return write_blobs(tmp_path / "it's data", {"train": 21, "val": 3}, per_shard=8)


def bytes_of(manifest: Manifest) -> int:
    return sum(shard.num_bytes for shards in manifest.splits.values() for shard in shards)


def test_copies_are_a_data_set_and_good_ones_are_not_read_again(tmp_path: Path, manifest: Manifest) -> None:
    folder = staging.stage_folder(str(tmp_path / "disk"), "a run", manifest.digest)
    shards = staging.used_shards(manifest, ("train", "val"))
    staging.make_room(folder, shards)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert staging.copy_shards(manifest, folder, shards, lambda: None) == bytes_of(manifest)
    staging.finish(manifest, folder)
    copy = load_manifest(folder)
    assert copy.digest == manifest.digest
    assert all((folder / s.file).read_bytes() == (manifest.folder / s.file).read_bytes() for s in shards)
    (folder / shards[1].file).write_bytes(b"half")
    assert staging.copy_shards(manifest, folder, shards, lambda: None) == shards[1].num_bytes
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]
    staging.remove(folder)
    assert not folder.exists()


def test_a_damaged_shard_is_named_and_leaves_no_copy(tmp_path: Path, manifest: Manifest) -> None:
    path = manifest.folder / "train-00001.h5"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    shards = staging.used_shards(manifest, ("train",))
    folder = staging.stage_folder(str(tmp_path), "run", manifest.digest)
    staging.make_room(folder, shards)
    with pytest.raises(FailedError, match=r"train-00001\.h5: the shard was changed after the manifest was written"):
        staging.copy_shards(manifest, folder, shards, lambda: None)
    assert sorted(p.name for p in folder.iterdir()) == ["train-00000.h5"]
    path.unlink()
    with pytest.raises(FailedError, match=r"train-00001\.h5: the shard cannot be read \(No such file"):
        staging.copy_shards(manifest, folder, shards, lambda: None)


def test_too_little_room_is_told_before_anything_is_copied(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 0, 25_000))
    folder = staging.stage_folder(str(tmp_path), "run", manifest.digest)
    with pytest.raises(OSError, match=r"hpcdl-stage-\S+: needs \d\.\d GB, 0\.0 GB are free"):
        staging.make_room(folder, staging.used_shards(manifest, ("train", "val")))
    assert not folder.exists()


def test_variables_are_filled_in_on_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert str(staging.stage_folder("/scratch/job_$SLURM_JOB_ID", "run", "d" * 64)).startswith(
        "/scratch/job_7/hpcdl-stage-"
    )
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(OSError, match="a variable in it is not set"):
        staging.stage_folder("/scratch/job_$SLURM_JOB_ID", "run", "d" * 64)


def test_nothing_else_is_ever_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    staging.remove(tmp_path / "precious")
    assert (tmp_path / "precious").is_dir()


def test_a_planted_link_is_not_followed(tmp_path: Path, manifest: Manifest) -> None:
    folder = staging.stage_folder(str(tmp_path), "run", manifest.digest)
    (tmp_path / "mine").mkdir()
    folder.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="is not a folder that only its owner"):
        staging.make_room(folder, staging.used_shards(manifest, ("train",)))
    folder.unlink()
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(OSError, match="is not a folder that only its owner"):
        staging.make_room(folder, staging.used_shards(manifest, ("train",)))


def test_two_attempts_never_share_a_folder() -> None:
    folders = {staging.stage_folder("/x", owner, "d" * 64) for owner in ("/runs/a:7-0", "/runs/a:7-1", "/runs/b:7-0")}
    assert len(folders) == 3
