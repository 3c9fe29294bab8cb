from __future__ import annotations

import json
from pathlib import Path

import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.shards.manifest import build_manifest, load_manifest, save_manifest, verify_shard
from tests.datasets import write_blobs


def test_a_good_data_set_verifies(tmp_path: Path) -> None:
    manifest = write_blobs(tmp_path, {"train": 5})
    assert manifest.num_samples("train") == 5
    assert manifest.num_samples("val") == 0
    for shard in manifest.splits["train"]:
        verify_shard(manifest, shard)


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_changed_shard_is_named(tmp_path: Path, damage: str) -> None:
    manifest = write_blobs(tmp_path, {"train": 5})
    path = tmp_path / "train-00000.h5"
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    else:
        content[-1] ^= 1
        path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(FailedError, match=r"train-00000\.h5: the shard (was changed|is missing)"):
        verify_shard(manifest, manifest.splits["train"][0])


def test_a_manifest_changed_by_hand_is_refused(tmp_path: Path) -> None:
    write_blobs(tmp_path, {"train": 5})
    path = tmp_path / "manifest.json"
    entries = json.loads(path.read_text())
    entries["splits"]["train"]["shards"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(entries))
    with pytest.raises(UsageError, match="changed by hand"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": "other"}', '{"format": "hpcdl-shards", "version": 1}'])
def test_other_files_are_no_manifests(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        load_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../evil.h5", "/etc/evil.h5", "sub/evil.h5", ".hidden.h5", "", ".."])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Staging writes copies under these names."""
    splits = {"train": {"shards": [{"file": name, "num_samples": 1, "num_bytes": 1, "sha256": "0"}]}}
    save_manifest(tmp_path, build_manifest("images", {}, splits, {}))
    with pytest.raises(UsageError, match="names a shard"):
        load_manifest(tmp_path)
