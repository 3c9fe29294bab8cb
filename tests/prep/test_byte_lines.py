from __future__ import annotations

import gzip

import pytest

from hpcdl.errors import UsageError
from hpcdl.prep import byte_lines
from hpcdl.prep.byte_lines import LineReader, find_files


def test_lines_and_jumps_are_the_same_in_plain_and_packed_files(tmp_path):
    raw = b"\xef\xbb\xbffirst\r\n\nthird \xff\nlast"
    (tmp_path / "plain").write_bytes(raw)
    (tmp_path / "packed").write_bytes(gzip.compress(raw))  # told by its contents, not by its name
    for name in ("plain", "packed"):
        with LineReader(tmp_path / name) as lines:
            found = []
            while True:
                offset = lines.offset
                line = next(lines, None)
                if line is None:
                    break
                found.append((offset, lines.number, line))
            assert found == [(0, 1, b"first"), (10, 2, b""), (11, 3, b"third \xff"), (19, 4, b"last")]
            lines.go_to(11)
            assert next(lines) == b"third \xff"
            lines.go_to(0)
            assert next(lines) == b"first"
            assert lines.where().endswith("byte 10")


def test_files_are_found_once_each_and_by_names_that_look_like_globs(tmp_path):
    for name in ("b.csv", "a.csv", "x[1].csv"):
        (tmp_path / name).touch()
    assert [path.name for path in find_files([f"{tmp_path}/b.csv", f"{tmp_path}/*.csv"], "--files")] == [
        "b.csv", "a.csv", "x[1].csv",
    ]  # fmt: skip
    assert find_files([f"{tmp_path}/x[1].csv"], "--files")[0].name == "x[1].csv"
    with pytest.raises(UsageError, match="is a folder; name its files, such as --files"):
        find_files([str(tmp_path)], "--files")
    with pytest.raises(UsageError, match="no such file"):
        find_files([f"{tmp_path}/none*"], "--files")
    with pytest.raises(UsageError, match="no file is given"):
        find_files([], "--files")


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_lines, "MAX_LINE_BYTES", 1000)
    (tmp_path / "x").write_bytes(b"a" * 5000)
    with LineReader(tmp_path / "x") as lines, pytest.raises(UsageError, match="line 1: a line of more than"):
        next(lines)
