from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep import folder as folders
from hpcdl.prep.folder import LOCK_NAME, locked, prepare
from hpcdl.prep.plan import Plan, ShardTask
from hpcdl.shards.writer import read_shard_header, write_shard_file


def plan_of(digest: str, num_bytes: int = 100) -> Plan:
    tasks = (ShardTask("train-00000", "train", None, "", num_bytes),)
    return Plan(digest=digest, settings={}, sources=(), fields={}, shards=tasks)


def shard(path, digest):
    write_shard_file(path, {"x": np.arange(3)}, {"plan": digest})


def test_one_run_at_a_time(tmp_path):
    out = tmp_path / "new" / "set"
    with locked(out):
        with pytest.raises(UsageError, match=f"another run is writing here .*process {os.getpid()}"), locked(out):
            pass
        assert (out / LOCK_NAME).exists()
    assert not (out / LOCK_NAME).exists()


def test_the_lock_goes_when_the_run_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_dead_runs_lock_is_taken_over_and_its_leftovers_go(tmp_path):
    code = "from hpcdl.prep import folder; from pathlib import Path; folder._take_lock(Path('.'))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)
    assert (tmp_path / LOCK_NAME).exists()
    (tmp_path / ".train-00000.h5.123.tmp").write_text("half")
    (tmp_path / "notes.tmp").write_text("mine")
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK_NAME, "notes.tmp"]


def test_locks_of_other_hosts_and_reused_process_ids(tmp_path, monkeypatch):
    def leave(**changes):
        (tmp_path / LOCK_NAME).write_text(json.dumps({**folders._myself(), **changes}))

    leave(host="elsewhere", job="7", restart=0)
    with pytest.raises(UsageError, match=r"host elsewhere, .*job 7.*remove"), locked(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with locked(tmp_path):  # the same job, requeued onto another node
        pass
    leave(started=-1)
    with locked(tmp_path):
        pass
    (tmp_path / LOCK_NAME).write_text("")
    with pytest.raises(UsageError, match="another run"), locked(tmp_path):
        pass


def test_without_a_manifest_shards_of_another_plan_are_replaced(tmp_path, capsys):
    shard(tmp_path / "train-00000.h5", "a")
    shard(tmp_path / "train-00001.h5", "a")
    (tmp_path / "test-00000.h5").write_bytes(b"damaged")
    assert prepare(tmp_path, plan_of("a"), overwrite=False) == {}
    header = read_shard_header(tmp_path / "train-00000.h5")
    assert (header.num_samples, header.attributes["plan"]) == (3, "a")
    assert capsys.readouterr().err == ""
    assert prepare(tmp_path, plan_of("b"), overwrite=False) == {}
    assert [path.name for path in tmp_path.glob("*.h5")] == ["test-00000.h5"]
    told = capsys.readouterr().err
    assert told.startswith(f"hpcdl: {tmp_path}: removed 2 shards of an unfinished run")
    assert told.count("\n") == 1


def test_with_a_manifest_shards_are_known_by_their_digest_and_not_opened(tmp_path, monkeypatch, capsys):
    """HDF5 may raise anything on a damaged file, or read it for ever."""
    monkeypatch.delattr(folders, "read_shard_header")
    shard(tmp_path / "train-00000.h5", "damaged plan")
    body = {"plan": "a", "splits": {"train": {"shards": [{"file": "train-00000.h5", "sha256": "00"}]}}}
    (tmp_path / "manifest.json").write_text(json.dumps(body))
    assert prepare(tmp_path, plan_of("a"), overwrite=False) == {"train-00000.h5": "00"}
    assert (tmp_path / "train-00000.h5").exists()
    with pytest.raises(UsageError, match=r"other settings or sources.*--overwrite"):
        prepare(tmp_path, plan_of("b"), overwrite=False)
    assert prepare(tmp_path, plan_of("b"), overwrite=True) == {}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_finished_manifest_tells_what_the_files_should_be(tmp_path):
    body = {"plan": "a", "splits": {"train": {"shards": [{"file": "train-00000.h5", "sha256": "00"}]}}}
    (tmp_path / "manifest.json").write_text(json.dumps(body))
    assert prepare(tmp_path, plan_of("a"), overwrite=False) == {"train-00000.h5": "00"}
    with pytest.raises(UsageError, match="--overwrite"):
        prepare(tmp_path, plan_of("b"), overwrite=False)
    prepare(tmp_path, plan_of("b"), overwrite=True)
    assert not (tmp_path / "manifest.json").exists()


def test_a_full_disk_is_refused_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(FailedError, match="are free; choose another"):
        prepare(tmp_path, plan_of("a", 5_000_000_000), overwrite=False)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"), locked(tmp_path / "file" / "set"):
        pass
