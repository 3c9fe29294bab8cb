from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from hpcdl.errors import FailedError, UsageError
from hpcdl.prep.language import lines
from hpcdl.prep.language.lines import text_file

LINES = ["first", "  zweite, ünïcode 中文 🙂", "", "last one"]


def made(path: Path, body: bytes, encoding: str = "utf-8"):
    path.write_bytes(body)
    return text_file(path, encoding)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(
    ("written", "given"),
    [("utf-8", "utf-8"), ("utf-8-sig", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("utf-16", "utf-8"), ("utf-16", "utf-16"),
     ("utf-32", "utf-8"), ("gb18030", "gb18030")],
)  # fmt: skip
def test_lines_are_the_same_however_they_are_written(tmp_path, end, pack, written, given):
    file = made(tmp_path / "a", pack(end.join(LINES).encode(written)), given)
    found = list(file.lines())
    assert [line.text for line in found] == LINES
    assert [line.number for line in found] == [1, 2, 3, 4]
    spans = [(line.start, line.end) for line in found]
    assert [text.strip("\n") for text in file.spans(spans[1:])] == LINES[1:]
    assert "".join(piece.text for piece in file.pieces()) == "\n".join(LINES)


def test_a_text_without_lines_comes_in_pieces_that_end_at_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "PIECE_BYTES", 64)
    for body in ("ü中🙂" * 200, "word " * 200, "\n" * 500, "a\n b\n c\n" * 50, "x" * 100 + "\r\n" * 80):
        file = made(tmp_path / "a", body.encode())
        pieces = list(file.pieces())
        assert len(pieces) > 3
        assert "".join(piece.text for piece in pieces) == body.replace("\r\n", "\n")
        assert max(piece.end - piece.start for piece in pieces) <= 192
        assert [piece.start for piece in pieces[1:]] == [piece.end for piece in pieces[:-1]]


def test_pieces_begin_with_lines_where_they_can(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "PIECE_BYTES", 64)
    file = made(tmp_path / "a", b"a line of some words\n\n  more\n" * 30)
    assert all(piece.text.startswith("a line") for piece in file.pieces())


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_offsets_of_characters_are_those_of_the_file(tmp_path, end):
    body = end.join(["ab", "ü🙂", "", "cd", ""])
    file = made(tmp_path / "a", body.encode())
    text = body.replace("\r\n", "\n")
    for number in range(len(text) + 1):
        cut = file.offset_of(0, len(body.encode()), number)
        (before,) = file.spans([(0, cut)])
        assert before == text[:number]


def test_an_empty_file_has_no_lines(tmp_path):
    file = made(tmp_path / "a", b"")
    assert list(file.lines()) == list(file.pieces()) == []


def test_undecodable_bytes_and_zeros_are_told_by_line(tmp_path):
    with pytest.raises(UsageError, match=r"a:2: not utf-8 text \(bytes ff 0a\)"):
        list(made(tmp_path / "a", b"fine\n\xff\n").lines())
    with pytest.raises(UsageError, match=r"b:3: not utf-8 text"):
        list(made(tmp_path / "b", b"fine\nfine\n\xff\n").pieces())
    with pytest.raises(UsageError, match=r"c:1: holds a zero byte: .*--encoding utf-16"):
        list(made(tmp_path / "c", "no mark".encode("utf-16-le")).lines())
    with pytest.raises(UsageError, match=r"d: not utf-16 text after line 1"):
        list(made(tmp_path / "d", "odd".encode("utf-16") + b"\x00").lines())


def test_a_file_cut_short_is_told(tmp_path):
    body = gzip.compress(bytes(range(32, 127)) * 500 + b"\n")
    file = made(tmp_path / "a.gz", body[:-20])
    with pytest.raises(UsageError, match=r"a\.gz: damaged near line 1: .*get the file anew"):
        list(file.lines())


def test_what_is_no_text_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        text_file(tmp_path / "missing", "utf-8")
    with pytest.raises(UsageError, match="is a folder"):
        text_file(tmp_path, "utf-8")
    with pytest.raises(UsageError, match="a zip archive; unpack it"):
        made(tmp_path / "a", b"PK\x03\x04rest")
    for name in ("nonsense", "base64"):
        with pytest.raises(UsageError, match=f"encoding '{name}' is not known"):
            made(tmp_path / "b", b"x", name)
    with pytest.raises(UsageError, match="begins with the byte order mark of utf-8, not latin-1"):
        made(tmp_path / "c", b"\xef\xbb\xbfx", "latin-1")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    with pytest.raises(UsageError, match=r"a:2: a line of more than"):
        list(made(tmp_path / "a", b"short\n" + b"x" * 2000).lines())


def test_spans_beyond_the_end_are_a_changed_file(tmp_path):
    with pytest.raises(FailedError, match="is not what it was when the plan was made"):
        list(made(tmp_path / "a", b"abc").spans([(0, 2), (2, 9)]))


def test_utf8_given_as_another_encoding_is_noticed(tmp_path):
    assert made(tmp_path / "a", "é".encode(), "latin-1").looks_like_utf8()
    assert not made(tmp_path / "b", "é".encode("latin-1"), "latin-1").looks_like_utf8()
    assert not made(tmp_path / "c", b"plain", "latin-1").looks_like_utf8()
    assert not made(tmp_path / "d", "é".encode(), "utf-8").looks_like_utf8()
