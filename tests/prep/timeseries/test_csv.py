from __future__ import annotations

import gzip
import math

import pytest

from hpcdl.errors import UsageError
from hpcdl.prep.timeseries.csv import number, read_at, read_layout, read_records


def read(path, delimiter="auto", encoding="utf-8", columns=()):
    layout = read_layout(path, delimiter, encoding, columns)
    return layout, list(read_records(path, layout))


@pytest.mark.parametrize(
    ("raw", "columns", "cells"),
    [
        (b"a,b\n1,2\n3,4\n", ("a", "b"), [["1", "2"], ["3", "4"]]),
        (b"\xef\xbb\xbfa;b\r\n1;2\r\n\r\n3;4", ("a", "b"), [["1", "2"], ["3", "4"]]),
        (b"a\tb\n1\t2\n", ("a", "b"), [["1", "2"]]),
        (b'"a, b",c\n"x ""y""\nz", 2\n3,4\n', ("a, b", "c"), [['x "y"\nz', "2"], ["3", "4"]]),
        (b"\n\n a , ,\n1,2,\n", ("a",), None),
        (b"date,v,\n1,2,\n", ("date", "v"), [["1", "2"]]),
        (b",v\n0,2\n", ("column1", "v"), [["0", "2"]]),
        ("größe,v\n1,2\n".encode(), ("größe", "v"), [["1", "2"]]),
    ],
)
def test_headers_and_records(tmp_path, raw, columns, cells):
    path = tmp_path / "ä b.csv"
    for content in (raw, gzip.compress(raw)):
        path.write_bytes(content)
        if cells is None:
            with pytest.raises(UsageError, match="2 cells where there are 1 columns"):
                read(path)
            continue
        layout, records = read(path)
        assert layout.columns == columns
        assert [record.cells for record in records] == cells
        offsets = [record.offset for record in records]
        assert [row[: len(columns)] for row in read_at(path, layout, offsets)] == cells
        assert [row[: len(columns)] for row in read_at(path, layout, offsets[-1:])] == cells[-1:]


def test_other_encodings_and_files_without_a_header(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("Größe,v\n1,2\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"t\.csv, line 1: not utf-8 text; .*--encoding latin-1"):
        read(path)
    assert read(path, encoding="latin-1")[0].columns == ("Größe", "v")
    path.write_bytes(b"1,2\n3,4\n")
    with pytest.raises(UsageError, match="the first line holds numbers only"):
        read(path)
    _, records = read(path, columns=("x", "y"))
    assert [record.cells for record in records] == [["1", "2"], ["3", "4"]]
    with pytest.raises(UsageError, match="has 2 cells, --columns names 3"):
        read(path, columns=("x", "y", "z"))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b"a,a\n1,2\n", "two columns are called 'a'"),
        (b"a,b\n1,2\n3\n", "line 3: 1 cells where there are 2 columns"),
        (b"a,b\n1,2,3\n", "line 2: 3 cells"),
        (b'a,b\n1,"2\n3,4\n', "line 3: not readable as CSV.*quote"),
        (b'a,b\n"1"x,2\n', "line 2: not readable as CSV"),
        ("a,b\n1,2\n".encode("utf-16"), "NUL bytes: a binary or UTF-16 file"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 9999)[:-20], "the file is damaged after here"),
        (gzip.compress(b"a,b\n1,2\n")[:-8] + b"\1" * 8, "the file is damaged after here"),
    ],
)
def test_damaged_files_are_refused_with_the_line(tmp_path, raw, message):
    path = tmp_path / "t.csv"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=message):
        read(path)


def test_numbers():
    assert [number(text) for text in (" 1.5 ", "-2e3", "+.5")] == [1.5, -2000, 0.5]
    assert all(math.isnan(number(text)) for text in ("", " ", "NA", "n/a", "NaN", "null", "-", "?", "#N/A"))
    assert number("1,5", decimal_comma=True) == 1.5
    for text in ("1_000", "inf", "-Infinity", "1,5", "12%", "x", "1 000"):
        with pytest.raises(ValueError):  # noqa: PT011
            number(text)
    with pytest.raises(ValueError, match=r"1\.000,5"):
        number("1.000,5", decimal_comma=True)
