from __future__ import annotations

import pytest

from hpcdl.errors import UsageError
from hpcdl.prep.language.lines import text_file
from hpcdl.prep.language.tables import open_table


def table_of(path, body: str, columns=("text", "label"), quotes="auto"):
    path.write_text(body, encoding="utf-8", newline="")
    file = text_file(path, "utf-8")
    return file, open_table(file, columns, quotes)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found_by_the_columns(tmp_path, delimiter):
    body = delimiter.join([" text", "other", "label "]) + "\n" + delimiter.join(["a b", "x", "1"]) + "\n"
    file, table = table_of(tmp_path / "t", body)
    assert table.delimiter == delimiter
    assert [record.cells for record in table.records(file)] == [("a b", "1")]


def test_a_row_is_found_again_by_its_place(tmp_path):
    body = 'label,text\r\n1,"a ""quoted""\r\ntext, with all"\r\n\r\n2,plain\r\n3\r\n4,last,,\r\n'
    file, table = table_of(tmp_path / "t", body)
    records = list(table.records(file))
    assert [r.cells for r in records] == [('a "quoted"\ntext, with all', "1"), ("plain", "2"), ("", "3"), ("last", "4")]
    assert [record.number for record in records] == [2, 5, 6, 7]
    places = [(record.start, record.end) for record in records]
    assert [table.cells(text) for text in file.spans(places)] == [record.cells for record in records]


def test_quotes_are_text_between_tabs_unless_asked_for(tmp_path):
    body = 'label\ttext\n1\t"a said\n2\tb"\n'
    file, table = table_of(tmp_path / "t", body)
    assert [record.cells[0] for record in table.records(file)] == ['"a said', 'b"']
    file, table = table_of(tmp_path / "t", body, quotes="yes")
    assert [record.cells for record in table.records(file)] == [("a said\n2\tb", "1")]


def test_cells_that_were_cut_apart_are_told(tmp_path):
    file, table = table_of(tmp_path / "t", "label,text\n1,fine\n2,one, two\n")
    with pytest.raises(UsageError, match=r"t:3: 3 cells, the header has 2; cells that hold the delimiter"):
        list(table.records(file))


def test_an_open_quote_is_told_with_the_line_it_begins_in(tmp_path):
    file, table = table_of(tmp_path / "t", 'label,text\n1,fine\n2,"never closed\n3,x\n')
    with pytest.raises(UsageError, match=r"t:3: not a row of a table: .*--quotes"):
        list(table.records(file))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is empty; a table needs a header"),
        ("txt,label,x\n", r"t:1: no column 'text'; the header has: txt, label, x\. Did you mean 'txt'"),
        ("text,label,text\n", "the column 'text' is there 2 times"),
    ],
)
def test_a_header_without_the_columns_is_refused(tmp_path, body, message):
    with pytest.raises(UsageError, match=message):
        table_of(tmp_path / "t", body)
