import csv
import gzip
import hashlib
import io
import json
import tracemalloc
import zipfile
from dataclasses import asdict
from datetime import date, datetime

import openpyxl
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from chains import readers
from chains.errors import TableError
from chains.tables import MISSING, Layout, Row, guess_text_column, read_rows, scan, text_of

# Any text that UTF-8 can hold.
cells = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text(st.characters(categories=["L"]), min_size=1, max_size=8)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(cells, inner, max_size=2))
NAUGHTY = [
    "",
    " ",
    "\0",
    "\x01\x1b[31m",
    '"',
    '""',
    "'",
    "a,b;c\td|e",
    "line\nbreak",
    "line\rbreak",
    "line\r\nbreak",
    "\r",
    "\n",
    "\u2028\u2029\x85\x0b\x0c\x1c",
    "\ufeffBOM \ufeff inside",
    "\ufffe\uffff",
    "مرحبا \u202eright to left\u202c",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "Z͑ͫ̓ͪ̂ͫ̽a͎̗l͎g̖o",
    "=1+1",
    "+cmd|' /C calc'!A0",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "NULL",
    "None",
    "nan",
    "1e999",
    "#N/A",
    "007",
    "<script>alert(1)</script>",
    "&amp;",
    "_x000D_",
    "{{text}}",
    '{"text": 1}',
    "\\",
    "\\n",
    "é" * 100_000,
    "𝕳𝖊𝖑𝖑𝖔 ﷽",
]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")

    def read(source, name="x.csv", **options):
        path = folder / name
        path.write_bytes(source)
        return scan(path, **options)

    return read


@st.composite
def csv_tables(draw):
    columns = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    return [columns, *draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), min_size=1))]


def write_csv(rows, delimiter=","):
    target = io.StringIO(newline="")
    csv.writer(target, delimiter=delimiter).writerows(rows)
    return target.getvalue()


def write_parquet(columns, **options):
    target = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), target, **options)
    return target.getvalue()


def write_excel(rows):
    target = io.BytesIO()
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(target)
    return target.getvalue()


def content(table):
    """The columns, then the cells of every row, none of which may have an error."""
    rows = list(table.rows())
    assert [row.number for row in rows] == list(range(1, table.total + 1))
    assert [row.error for row in rows] == [""] * table.total
    return [list(table.columns), *(list(row.cells) for row in rows)]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (b"text\nhello\n", [["text"], ["hello"]]),
        (b"text\nhello", [["text"], ["hello"]]),
        (b"id,text\r\n1,hello\r\n", [["id", "text"], ["1", "hello"]]),
        (b"id,text\r1,hello\r", [["id", "text"], ["1", "hello"]]),
        (b"\n\nid,text\n1,a\n", [["id", "text"], ["1", "a"]]),
        (b"id;text\n1;Hello, world\n2;a, b, c\n", [["id", "text"], ["1", "Hello, world"], ["2", "a, b, c"]]),
        (b"id\ttext\n1\ta;b\n", [["id", "text"], ["1", "a;b"]]),
        (b"id|text\n1|a, b; c\n", [["id", "text"], ["1", "a, b; c"]]),
        (b"text\nOne, two\nthree; four\n", [["text"], ["One, two"], ["three; four"]]),
        (b'text\n"One, two"\n', [["text"], ["One, two"]]),
        (b'"id";"text"\n"1";"a, b"\n', [["id", "text"], ["1", "a, b"]]),
        (b'id,text\n1,"two\nlines"\n2,"a ""b"" c"\n', [["id", "text"], ["1", "two\nlines"], ["2", 'a "b" c']]),
        (b"id,text\n001,NA\n1e5,null\n,\n", [["id", "text"], ["001", "NA"], ["1e5", "null"], ["", ""]]),
        (b"id,text\n1,a\n\n2,b\n\n\n", [["id", "text"], ["1", "a"], ["", ""], ["2", "b"]]),
        (b'text\n""\n', [["text"], [""]]),
        (b"text,text,,text\na,2,3,4\n", [["text", "text.1", "column 3", "text.2"], ["a", "2", "3", "4"]]),
        (b"text,text,text.1\na,2,3\n", [["text", "text.2", "text.1"], ["a", "2", "3"]]),
        (b"text,column 3,\na,2,3\n", [["text", "column 3", "column 3.1"], ["a", "2", "3"]]),
        (b"text,language,\na,b,\n", [["text", "language", "column 3"], ["a", "b", ""]]),
        (b"id,text\n1,a\0b\n", [["id", "text"], ["1", "a\0b"]]),
        (gzip.compress(b"id,text\n1,a\n"), [["id", "text"], ["1", "a"]]),
    ],
)
def test_csv_is_read_as_it_stands(read, source, expected):
    assert content(read(source)) == expected


@pytest.mark.parametrize(
    ("source", "has_header"),
    [
        (b"id,text\n1,a\n", True),
        (b"a\nb\n", True),
        (b"name,2019,2020\nAna,1,2\n", True),
        (b"2019,2020\n1,2\n", False),
        (b"1,2.5,\n3,4,a\n", False),
        (b"1,a\n2,b\n1,a\n", False),
        (b"text\na\ntext\n", True),
        (b"%s\nhello\n" % (b"a long text " * 11), False),
        (b"%s,TEXT\na,b\n" % (b"a long name " * 11), True),
        (b"2019,2020\n", False),
    ],
)
def test_the_first_row_is_the_header_unless_it_clearly_is_not(read, source, has_header):
    table = read(source)
    first = source.decode().splitlines()[0].split(",")
    assert table.layout.has_header is has_header
    assert table.layout.header == (tuple(first) if has_header else ())
    assert table.total == source.count(b"\n") - has_header
    assert has_header or (list(next(table.rows()).cells) == first and table.columns[0] == "column 1")


def test_a_chosen_header_is_obeyed(read):
    assert content(read(b"2019,2020\n1,2\n", has_header=True)) == [["2019", "2020"], ["1", "2"]]
    expected = [["column 1", "column 2"], ["id", "text"], ["", ""], ["1", "a"]]
    assert content(read(b"id,text\n\n1,a\n", has_header=False)) == expected


def test_without_a_header_most_rows_say_how_many_columns_there_are(read):
    table = read(b"1\n1,a\n2,b\n", has_header=False, delimiter=",")
    assert (table.columns, table.unreadable, table.total) == (("column 1", "column 2"), 1, 3)


def test_a_chosen_encoding_and_delimiter_are_obeyed(read):
    table = read("a;b,c\nñ;1,2\n".encode("latin-1"), encoding="latin-1", delimiter=",")
    assert content(table) == [["a;b", "c"], ["ñ;1", "2"]]
    assert content(read(b"a,b\n1,2\n", delimiter="")) == [["a,b"], ["1,2"]]


def test_a_chosen_utf_8_drops_the_byte_order_mark(read):
    assert read(b"\xef\xbb\xbftext\na\n", encoding="utf-8").columns == ("text",)


def test_the_header_keeps_the_names_of_the_file(read):
    assert read(b"text,text,\n1,2,3\n").layout.header == ("text", "text", "")


def test_a_cell_may_be_longer_than_the_csv_default(read):
    assert len(next(read(b"text\n" + b"a" * 200_000).rows()).cells[0]) == 200_000


@pytest.mark.parametrize(
    ("source", "options", "number", "cells", "message"),
    [
        (
            b"id,text\n1,a\n2,b,c\n",
            {},
            2,
            ("2", "b"),
            "Row 2 (line 3) has 3 fields and the table 2 fields, split at ',', so that 'c' is one too many",
        ),
        (
            b"id,text\n1,a\n\n2\n",
            {},
            3,
            ("2", ""),
            "Row 3 (line 4) has 1 field and the table 2 fields, split at ',', so ",
        ),
        (b'id,text\n1,"a\nb"\n2\n3,c', {}, 2, ("2", ""), "so that column 'text' is missing: put quotes around cells"),
        (b"text\na,b\nc\n", {"delimiter": ","}, 1, ("a",), "Row 1 (line 2) has 2 fields and the table 1 field"),
        (b'id,text\n1,"a\n2,b\n', {}, 1, ("1", "a"), "Row 1 (line 2) opens a quote in field 2 that never closes"),
        (b'id,text\n1,"a" b\n2,b\n', {}, 1, ("1", "a b"), "Row 1 (line 2) has a broken quote"),
        (
            b'text\n"a" b\nb\n',
            {},
            1,
            ("a b",),
            "Row 1 (line 2) has a broken quote (the end of the line expected after '\"')",
        ),
        (b"id,text\n1,%s\n2,b\n" % (b"a" * 1_000_001), {}, 1, ("", ""), "has a cell of more than 1,000,000 characters"),
    ],
)
def test_a_row_that_cannot_be_read_says_why_and_costs_no_other(read, source, options, number, cells, message):
    table = read(source, **options)
    bad = [row for row in table.rows() if row.error]
    assert [(row.number, row.cells) for row in bad] == [(number, cells)]
    assert message in bad[0].error
    assert (table.unreadable, table.problems) == (1, (bad[0].error,))
    assert text_of(bad[0], 0) == ("", bad[0].error)


def test_the_first_problems_are_kept(read):
    table = read(b"id,text\n" + b"1,a\n2\n" * 10)
    assert (table.total, table.unreadable, len(table.problems)) == (20, 10, 5)
    assert table.problems[1].startswith("Row 4 (line 5) ")


@pytest.mark.parametrize(
    ("source", "name", "message"),
    [
        (b"", "x.csv", "The file of 'x.csv' is empty"),
        (b"", "x.parquet", "The file of 'x.parquet' is empty"),
        (gzip.compress(b""), "x.csv.gz", "The file of 'x.csv.gz' is empty"),
        (b"\xef\xbb\xbf\r\n \n", "x.csv", "The file of 'x.csv' is empty"),
        (b"id,text\n", "x.csv", "The file of 'x.csv' has a header but no rows"),
        (b"id,text\n\n\n", "x.csv", "The file of 'x.csv' has a header but no rows"),
        (b'id,"text\n1,a\n', "x.csv", "The header (line 1) of 'x.csv' opens a quote in field 2"),
        (b"id,text\n1\n2\n", "x.csv", "No row of 'x.csv' can be read. Row 1 (line 2) has 1 field"),
        (b"," * 1_000 + b"\na\n", "x.csv", "'x.csv' has 1,001 columns: expected at most 1,000"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0", "x.csv", "'x.csv' is a PNG image. Expected CSV, JSON Lines"),
        (b"\x93\0\xff\x01\xfe\xff\0\0\n\x8d", "x.csv", "'x.csv' is no text"),
        (b"%PDF-1.7\n%\xe2\xe3", "x.csv", "'x.csv' is a PDF document"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
            "x.xls",
            "an Excel workbook of the old kind (.xls) or one with a password",
        ),
        (gzip.compress(b"id,text\n1,a\n" * 99)[:-9], "x.csv.gz", "'x.csv.gz' is damaged or not whole"),
        (gzip.compress(write_excel([["a"]])), "x.gz", "'x.gz' is a gzipped zip archive: unpack it first"),
        (write_parquet({"a": ["x" * 99]})[:-9], "x.parquet", "'x.parquet' is damaged or no Parquet file"),
        (write_parquet({"a": []}), "x.parquet", "has a header but no rows"),
        (write_parquet({"a": ["x"]})[:-9], "x.csv", "'x.csv' is damaged or no Parquet file"),
        (write_excel([["a"], ["b"]])[:-99], "x.xlsx", "'x.xlsx' is damaged or not whole"),
        (write_excel([]), "x.xlsx", "The file of 'x.xlsx' is empty"),
        (write_excel([["text"]]), "x.xlsx", "has a header but no rows"),
        (b'[{"text": "a"}]', "x.json", "'x.json' is a JSON array: expected JSON Lines"),
        (b'[\n{"text": "a"},\n{"text": "b"}\n]', "x.jsonl", "'x.jsonl' is a JSON array: expected JSON Lines"),
        (
            b'{\n"text": "a"\n}',
            "x.json",
            "There is no key in any row of 'x.json': expected one JSON object per line. Row 1 (line 1)",
        ),
        (b"{}\n", "x.jsonl", "There is no key in any row of 'x.jsonl'"),
        (
            b"{}\n{\n",
            "x.jsonl",
            "There is no key in any row of 'x.jsonl': expected one JSON object per line. Row 2 (line 2)",
        ),
    ],
)
def test_what_is_no_table_is_an_error_in_words(read, source, name, message):
    with pytest.raises(TableError) as caught:
        read(source, name)
    assert message in str(caught.value)


@pytest.mark.parametrize(("delimiter", "message"), [("::", "'::' cannot separate fields"), ('"', "cannot separate")])
def test_a_wrong_delimiter_is_an_error(read, delimiter, message):
    with pytest.raises(TableError, match=message):
        read(b"text\na\n", delimiter=delimiter)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(TableError, match=r"Cannot read 'missing\.csv': No such file"):
        scan(tmp_path / "missing.csv")
    with pytest.raises(TableError, match=r"Cannot read '.*': Is a directory"):
        scan(tmp_path)


def test_a_zip_archive_is_no_workbook(read):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("x.csv", "text\na\n")
    with pytest.raises(TableError, match="is a zip archive and no Excel workbook"):
        read(target.getvalue(), "x.zip")


@pytest.mark.parametrize("limit", ["MAX_FILE_BYTES", "MAX_SHARED_STRINGS_BYTES"])
def test_a_workbook_that_swells_is_an_error(read, monkeypatch, limit):
    target = io.BytesIO(write_excel([["text"], ["a"]]))
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sharedStrings.xml", b"<t>a</t>" * 10_000)
    monkeypatch.setattr(readers, limit, 50_000)
    with pytest.raises(TableError, match="is too large a workbook"):
        read(target.getvalue(), "x.xlsx")


def test_a_parquet_file_that_swells_is_an_error(read, monkeypatch):
    monkeypatch.setattr(readers, "MAX_FILE_BYTES", 100_000)
    with pytest.raises(TableError, match="holds more than 100,000 bytes"):
        read(write_parquet({"text": ["a" * 100] * 10_000}), "x.parquet")


def test_json_lines_have_the_columns_of_all_rows(read):
    table = read(b'{"b": 1, "": [1], "text": "a"}\n\n{"text": null, "c": {"x": true}}\n', "x.csv")
    assert content(table) == [
        ["b", "column 2", "text", "c"],
        [1, [1], "a", MISSING],
        [MISSING, MISSING, None, {"x": True}],
    ]
    assert (table.layout.kind, table.layout.header) == ("jsonl", ("b", "", "text", "c"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "Row 2 (line 3) is no JSON (Expecting property name"),
        ("[1]", "Row 2 (line 3) holds a list: expected one JSON object per line"),
        ("null", "Row 2 (line 3) holds null: expected"),
        ('{"text": NaN}', "Row 2 (line 3) is no JSON (NaN is no JSON value)"),
        ('{"text": 1e999}', "Row 2 (line 3) is no JSON (1e999 is too large a number)"),
        ('{"text": ' + "9" * 5_000 + "}", "Row 2 (line 3) is no JSON (Exceeds the limit"),
        ('{"text": ' + "[" * 100_000 + "}", "Row 2 (line 3) is no JSON (it is nested too deeply)"),
        ('{"text": "a"} {}', "Row 2 (line 3) is no JSON (Extra data"),
        ('{"text": "' + "a" * 1_000_001 + '"}', "Row 2 (line 3) has 1,000,001 characters in column 'text'"),
        (json.dumps({str(key): key for key in range(1_001)}), "brings the table to more than 1,000 different keys"),
    ],
)
def test_a_line_that_is_no_object_costs_no_other(read, line, message):
    table = read(f'{{"text": "a"}}\n\n{line}\n{{"text": "b"}}\n'.encode())
    rows = list(table.rows())
    assert [row.cells for row in rows] == [("a",), (MISSING,), ("b",)]
    assert message in rows[1].error
    assert (table.total, table.unreadable, table.problems) == (3, 1, (rows[1].error,))


@pytest.mark.parametrize("first", ["{", "[1]", "oops"])
def test_the_name_says_json_lines_where_the_first_line_is_broken(read, first):
    table = read(f'{first}\n{{"text": "a"}}\n'.encode(), "x.jsonl.gz")
    assert (table.layout.kind, table.total, table.unreadable) == ("jsonl", 2, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["a", None], "text"),
        ([None], "text"),
        ([1, 2**63 - 1], "integer"),
        ([2**63], "json"),
        ([1, 1.5], "number"),
        ([True, None], "boolean"),
        ([True, 1], "json"),
        (["a", 1], "json"),
        ([[1]], "json"),
    ],
)
def test_json_columns_have_types(read, values, expected):
    lines = [json.dumps({"x": value}) for value in values]
    assert read("\n".join(lines).encode()).layout.types == (expected,)


def test_parquet_is_read_as_it_stands(read):
    when = datetime(2024, 5, 1, 12, 30)
    source = write_parquet({"text": ["a", None], "n": [1, 2], "at": [when, when], "more": [[{"x": "y"}], []]})
    table = read(source, "x.csv")
    expected = [["text", "n", "at", "more"], ["a", 1, when, [{"x": "y"}]], [None, 2, when, []]]
    assert (content(table), table.layout.kind) == (expected, "parquet")


def test_a_parquet_row_that_python_has_no_value_for_costs_no_other(read):
    stamps = pyarrow.array([0, 2**62, 0], pyarrow.timestamp("us"))
    rows = list(read(write_parquet({"text": ["a", "b", "c"], "at": stamps}), "x.parquet").rows())
    assert [row.cells for row in rows] == [("a", datetime(1970, 1, 1)), ("b", None), ("c", datetime(1970, 1, 1))]
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert "Row 2 has a value in column 'at' that cannot be read" in rows[1].error


def test_a_parquet_cell_that_is_too_long_costs_its_row(read):
    rows = list(read(write_parquet({"text": ["a", "b" * 1_000_001]}), "x.parquet").rows())
    assert rows[0] == Row(1, ("a",), "")
    assert rows[1] == Row(2, (None,), "Row 2 has 1,000,001 characters in column 'text': expected at most 1,000,000.")


def test_a_text_table_may_begin_like_parquet(read):
    assert content(read(b"PAR1,text\n1,a\n")) == [["PAR1", "text"], ["1", "a"]]


def test_excel_is_read_from_the_first_sheet(read):
    when = datetime(2024, 5, 1, 12, 30)
    rows = [[], ["id", "text", None], [1, "=1+1", when], [], [2.5, None, None, "beyond"], [True, "b"], []]
    table = read(write_excel(rows), "x.csv")
    assert content(table) == [
        ["id", "text", "column 3", "column 4"],
        [1, None, when, None],  # a formula has no value before a spreadsheet has computed it
        [None, None, None, None],
        [2.5, None, None, "beyond"],
        [True, "b", None, None],
    ]
    assert (table.layout.kind, table.layout.header) == ("excel", ("id", "text", "", ""))
    assert table.layout.types == ("json", "text", "datetime", "text")


def test_an_excel_cell_that_is_too_long_costs_its_row(read, monkeypatch):
    monkeypatch.setattr(readers, "MAX_CELL_CHARACTERS", 5)
    rows = list(read(write_excel([["id", "text"], [1, "abcde"], [2, "abcdef"]]), "x.xlsx").rows())
    error = "Row 2 (line 3) has 6 characters in column 'text': expected at most 5."
    assert rows == [Row(1, (1, "abcde")), Row(2, (2, None), error)]


def test_excel_may_have_no_header(read):
    table = read(write_excel([[1, 2], [3, "a"]]), "x.xlsx")
    assert content(table) == [["column 1", "column 2"], [1, 2], [3, "a"]]
    assert table.layout.types == ("integer", "json")


def test_a_sheet_that_is_too_wide_or_says_so_is_read(read):
    wide = [["text"], ["a"], [None] * 1_000 + ["far"], ["b"]]
    table = read(write_excel(wide), "x.xlsx")
    assert [(row.cells[0], bool(row.error)) for row in table.rows()] == [("a", False), (None, True), ("b", False)]
    assert table.problems == ("Row 2 (line 3) has 1001 fields and the table 1 field: delete what stands at its right.",)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (b"id,text\n1,a\n\n2\n3,c\n", "x.csv"),
        (b'{"text": "a"}\n{"text": "b"}\n{\n{"text": "d"}\n', "x.jsonl"),
        (write_parquet({"text": list("abcdefg")}, row_group_size=3), "x.parquet"),
        (write_excel([["text"], ["a"], [], ["c"]]), "x.xlsx"),
    ],
)
def test_rows_may_start_anywhere_and_a_stored_layout_reads_the_same(read, source, name):
    table = read(source, name)
    rows = list(table.rows())
    layout = Layout(**json.loads(json.dumps(asdict(table.layout))))
    assert layout == table.layout
    for start in range(table.total + 2):
        assert list(read_rows(table.path, layout, start)) == rows[start:]


def test_a_table_knows_its_file(read):
    table = read(b"text\na\n", name="x.csv")
    assert (table.name, table.columns, table.column("text")) == ("x.csv", ("text",), 0)
    assert table.sha256 == hashlib.sha256(b"text\na\n").hexdigest()
    assert scan(table.path, name="mine.csv").name == "mine.csv"
    with pytest.raises(TableError, match="There is no column 'txt' of 'x.csv': choose one of 'text'"):
        table.column("txt")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("a", "a"),
        (None, ""),
        (MISSING, ""),
        (1, "1"),
        (1.5, "1.5"),
        (True, "True"),
        (date(2024, 5, 1), "2024-05-01"),
        ("é😀", "é😀"),
    ],
)
def test_the_text_of_a_cell(cell, expected):
    assert text_of(Row(1, ("x", cell)), 1) == (expected, "")


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ([1], "a list"),
        ({"a": 1}, "a dict"),
        (b"a", "a bytes"),
        ("a\ud800", "half a character ('\\ud800', a lone surrogate)"),
    ],
)
def test_what_is_no_text_is_an_error(cell, found):
    expected = f"Row 7 holds {found} where its text should be: expected text, a number or nothing."
    assert text_of(Row(7, (cell,)), 0) == ("", expected)


@pytest.mark.parametrize(
    ("source", "column"),
    [
        (b"id,text,title\n1,a,a very long title\n", "text"),
        (b"id, Mensaje ,title\n1,a,a very long title\n", " Mensaje "),
        (b"comment,TEXTE\na long comment,b\n", "TEXTE"),
        (b"id,words,author\n1234567,a b c d e f g h,Ana\n", "words"),
        (b"id,words\nab,cd\n", "id"),
        (b"text,Text\n1,2\n", "text"),
        (b'{"a": [1, 2, 3, 4, 5], "b": 12}\n{"c": null}\n', "b"),
    ],
)
def test_the_text_column_is_guessed_by_name_then_by_length(read, source, column):
    assert guess_text_column(read(source)) == column


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_naughty_strings_come_back_from_csv(read, delimiter, encoding):
    rows = [["id", "words"], *([str(number), text] for number, text in enumerate(NAUGHTY))]
    assert content(read(write_csv(rows, delimiter).encode(encoding))) == rows


def test_naughty_strings_come_back_from_json_lines_and_parquet(read):
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in NAUGHTY)
    expected = [["text"], *([text] for text in NAUGHTY)]
    assert content(read(lines.encode())) == expected
    assert content(read(write_parquet({"text": NAUGHTY}))) == expected


@given(
    csv_tables(), st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
)
def test_a_written_table_reads_back(read, rows, delimiter, encoding):
    source = write_csv(rows, delimiter).encode(encoding)
    chosen = {"encoding": encoding, "delimiter": delimiter, "has_header": True}
    assert content(read(source, **chosen)) == rows


@given(csv_tables(), st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_the_delimiter_and_encoding_of_a_written_table_are_found(read, rows, delimiter, encoding):
    table = read(write_csv(rows, delimiter).encode(encoding), has_header=True)
    assert content(table) == rows
    assert table.layout.delimiter == (delimiter if len(rows[0]) > 1 else "")


@given(st.lists(st.dictionaries(names, values, max_size=3), min_size=1, max_size=5).filter(any))
def test_any_json_objects_read_back(read, records):
    table = read("".join(json.dumps(record) + "\n" for record in records).encode(), "x.jsonl")
    header = table.layout.header
    rows = [
        {key: cell for key, cell in zip(header, row.cells, strict=True) if cell is not MISSING} for row in table.rows()
    ]
    assert rows == records
    assert list(header) == list(dict.fromkeys(key for record in records for key in record))


def check_scan(read, source, name):
    """Whatever a file holds, there is a table or an error in words."""
    try:
        table = read(source, name)
    except TableError:
        return
    rows = list(table.rows())
    assert len(rows) == table.total > table.unreadable == sum(bool(row.error) for row in rows)
    assert len(set(table.columns)) == len(table.columns) == len(table.layout.types)
    assert all(len(row.cells) == len(table.columns) for row in rows)
    if table.layout.kind == "csv":
        assert all(isinstance(cell, str) for row in rows for cell in row.cells)


@given(st.binary(max_size=60) | st.text(st.sampled_from('a1,;"\n\r{}[]: é'), max_size=40).map(str.encode))
def test_any_bytes_give_a_table_or_a_table_error(read, source):
    check_scan(read, source, "x.csv")


SEEDS = {
    "x.csv.gz": gzip.compress(b'id,text\n1,"a\nb"\n2,c\n'),
    "x.jsonl.gz": gzip.compress(b'{"text": "a", "n": [1]}\n{"text": "b"}\n'),
    "x.parquet": write_parquet({"text": ["a", "b"], "n": [[1], None]}, compression="none"),
    "x.xlsx": write_excel([["text", "n"], ["a", 1], ["b", datetime(2024, 5, 1)]]),
}


@pytest.mark.filterwarnings("ignore::UserWarning:openpyxl.*")
@given(st.sampled_from(sorted(SEEDS)), st.data())
def test_a_damaged_file_gives_a_table_or_a_table_error(read, name, data):
    source = bytearray(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(source) - 1))
        source[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    check_scan(read, bytes(source[: data.draw(st.integers(1, len(source)))]), name)


def write_rows(kind, number):
    texts = [f"{row} {'a' * 100}" for row in range(number)]
    if kind == "parquet":
        return write_parquet({"text": texts})
    return "".join(f'{{"text": "{text}"}}\n' if kind == "jsonl" else f"{text}\n" for text in ["text", *texts]).encode()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_large_file_takes_no_more_memory_than_a_small_one(read, kind):
    peaks = []
    for number in (10_000, 60_000):
        source = write_rows(kind, number)
        tracemalloc.start()
        try:
            assert sum(1 for _ in read(source, f"x.{kind}").rows()) >= number
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 100_000
