from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from hpcdl.errors import FailedError
from hpcdl.shards.writer import read_shard_header, write_shard_file

FIELDS = {"image": np.arange(24, dtype=np.uint16).reshape(3, 2, 4), "label": np.zeros(3, np.uint8)}


def write(path: Path) -> bytes:
    write_shard_file(path, FIELDS, {"plan": "a" * 64, "num_dropped": 2, "mean": np.arange(2.0)})
    return path.read_bytes()


def test_what_is_written_comes_back_and_is_the_same_every_time(tmp_path: Path) -> None:
    assert write(tmp_path / "a.h5") == write(tmp_path / "b.h5")
    header = read_shard_header(tmp_path / "a.h5")
    number, attributes = header.num_samples, header.attributes
    assert (number, attributes["plan"], attributes["num_dropped"]) == (3, "a" * 64, 2)
    assert attributes["mean"].tolist() == [0, 1]
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["image"][()], FIELDS["image"])


def test_fields_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="unequal length"):
        write_shard_file(tmp_path / "a.h5", {"x": np.zeros(2), "y": np.zeros(3)}, {})


@pytest.mark.parametrize("error", [KeyError, RuntimeError, ValueError, OverflowError, OSError])
def test_whatever_hdf5_raises_is_a_damaged_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*arguments: object, **names: object) -> None:
        raise error("unable to\nopen object")

    monkeypatch.setattr(h5py, "File", fail)
    with pytest.raises(FailedError, match=r"a\.h5: not readable as a shard: .*unable to") as caught:
        read_shard_header(tmp_path / "a.h5")
    assert "\n" not in str(caught.value)


def test_damage_in_the_metadata_is_an_error_of_ours(tmp_path: Path) -> None:
    """The end of the file holds the description of the last field."""
    data = write(tmp_path / "a.h5")
    seen = 0
    for place in [*range(64), *range(len(data) - 64, len(data))]:
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        (tmp_path / "b.h5").write_bytes(damaged)
        try:
            read_shard_header(tmp_path / "b.h5")
        except FailedError:
            seen += 1
    assert seen > 30
    (tmp_path / "b.h5").write_bytes(data[:-1])
    with pytest.raises(FailedError, match="not readable as a shard"):
        read_shard_header(tmp_path / "b.h5")
