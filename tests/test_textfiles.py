import csv
import gzip
import io
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains import textfiles
from chains.errors import TableError
from chains.textfiles import find_delimiter, find_encoding, read_blocks, read_records

texts = st.text(st.sampled_from('ab,;"\n\r é\u2028\0'), max_size=60)


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    path = tmp_path_factory.mktemp("textfiles") / "file"

    def write(content):
        path.write_bytes(content)
        return path

    return write


def records(path, delimiter=",", encoding="utf-8"):
    return list(read_records(read_blocks(path, False, encoding), delimiter))


def fields(path, **options):
    return [fields for _, fields, _ in records(path, **options)]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a\nb\r\nc\rd", ["a\n", "b\r\n", "c\r", "d"]),
        ("a\r\n\r\n", ["a\r\n", "\r\n"]),
        ("a\u2028b\x0bc\x85\n", ["a\u2028b\x0bc\x85\n"]),
        ("\ufeffa\n\ufeffb", ["a\n", "\ufeffb"]),
        ("", []),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_lines_end_where_csv_ends_them(write, content, expected, block):
    with patch.object(textfiles, "BLOCK", block):
        assert [line for block in read_blocks(write(content.encode()), False, "utf-8") for line in block] == expected


def test_an_endless_line_is_an_error(write, monkeypatch):
    monkeypatch.setattr(textfiles, "BLOCK", 10)
    monkeypatch.setattr(textfiles, "MAX_LINE_CHARACTERS", 50)
    path = write(b"a\n" + b"b" * 40 + b"\n" + b"c" * 200)
    with pytest.raises(TableError, match="Line 3 is longer than 50 characters"):
        list(read_blocks(path, False, "utf-8"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('1,"a\n2,b\n3,c\n', [(1, ["1", "a"], "opens a quote in field 2"), (2, ["2", "b"], ""), (3, ["3", "c"], "")]),
        ('1,"a\n2,"b"\n', [(1, ["1", "a"], "opens a quote in field 2"), (2, ["2", "b"], "")]),
        ('1,"a" x\n2,b\n', [(1, ["1", "a x"], "has a broken quote"), (2, ["2", "b"], "")]),
        ('1,"a\nb"\n2,"c\n', [(1, ["1", "a\nb"], ""), (3, ["2", "c"], "opens a quote in field 2")]),
        ('"\n"\n"\n', [(1, ["\n"], ""), (3, [""], "opens a quote in field 1")]),
        ('"a\r\nb\r\n', [(1, ["a"], "opens a quote in field 1"), (2, ["b"], "")]),
    ],
)
@pytest.mark.parametrize("block", [2, 5, 1000])
def test_a_broken_quote_costs_one_line(write, content, expected, block):
    with patch.object(textfiles, "BLOCK", block):
        found = records(write(content.encode()))
    assert [record[:2] for record in found] == [record[:2] for record in expected]
    assert [error[: len(start)] for (_, _, error), (_, _, start) in zip(found, expected, strict=True)] == [
        start for _, _, start in expected
    ]
    assert [bool(error) for _, _, error in found] == [bool(start) for _, _, start in expected]


def test_a_quote_that_never_closes_swallows_nothing_of_a_long_file(write):
    lines = [f"{number},some text that is long enough\n" for number in range(60_000)]
    lines[10] = '10,"open\n'
    found = records(write("".join(lines).encode()))
    assert [line for line, _, error in found if error] == [11]
    assert [fields[0] for _, fields, _ in found] == list(map(str, range(60_000)))


def test_a_cell_that_is_too_long_costs_its_line(write, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_CELL_CHARACTERS", 10)
    try:
        found = records(write(b"1,0123456789\n2,0123456789a\n3,b\n"))
    finally:
        csv.field_size_limit(1_000_000)
    assert [(line, fields, error[:36]) for line, fields, error in found] == [
        (1, ["1", "0123456789"], ""),
        (2, [], "has a cell of more than 10 character"),
        (3, ["3", "b"], ""),
    ]


def test_a_file_full_of_open_quotes_is_given_up(write, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_REREAD_CHARACTERS", 1_000)
    path = write(b'a",",b\n' * 100)  # each line opens a quote and is a quoted cell's end and beginning for the others
    with pytest.raises(TableError, match="Too many quotes open and never close, the last one in line "):
        records(path)


@given(texts, st.integers(4, 20))
def test_records_do_not_depend_on_the_blocks_they_are_read_in(write, text, block):
    path = write(text.encode())
    expected = records(path)
    with patch.object(textfiles, "BLOCK", block):
        assert records(path) == expected


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), min_size=1), max_size=6))
def test_what_csv_writes_is_read(write, rows):
    target = io.StringIO(newline="")
    csv.writer(target).writerows([["first"], *rows])
    assert records(write(target.getvalue().encode())) == [
        (line, fields, "") for line, fields in zip(_first_lines(rows), [["first"], *rows], strict=True)
    ]


def _first_lines(rows):
    lines = [1, 2]
    for row in rows:
        text = ",".join(row)
        lines.append(lines[-1] + 1 + text.count("\n") + text.count("\r") - text.count("\r\n"))
    return lines[:-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text\nMálaga 😀\n".encode(), "utf-8"),
        ("text\nMálaga 😀\n".encode("utf-8-sig"), "utf-8-sig"),
        ("text\nMálaga 😀\n".encode("utf-16"), "utf-16"),
        (b"\xfe\xff" + "text\nMálaga 😀\n".encode("utf-16-be"), "utf-16"),
        ("text\nMálaga – 5 €\n".encode("utf-16-le"), "utf-16-le"),
        ("text\nMálaga – 5 €\n".encode("utf-16-be"), "utf-16-be"),
        (b"text\n" + b"plain\n" * 300_000 + "«déjà» – 5 €".encode("cp1252"), "cp1252"),
        (b"text\n" + b"a" * ((1 << 20) - 6) + "é".encode(), "utf-8"),
        (b"a\0b\nc", "utf-8"),
    ],
)
def test_the_encoding_is_found_over_the_whole_file(write, content, expected):
    assert find_encoding(write(content), False, "x") == expected


@pytest.mark.parametrize(
    ("content", "encoding", "message"),
    [
        (b"text\n\x81\n", None, "Cannot read the file of 'x' as utf-8 or cp1252"),
        (b"\xff\xfea", None, "Cannot read the file of 'x' as utf-16"),
        (b"\xe9tat\0", None, "'x' is no text: it is not UTF-8, and there are NUL bytes"),
        (b"text\n\xe9\n", "utf-8", "Cannot read the file of 'x' as utf-8: byte 5 does not fit"),
        (b"a" * ((1 << 20) + 7) + b"\xe9\n", "utf-8", "byte 1048583 does not fit"),
        (b"text", "utf-99", "Python knows no encoding 'utf-99'"),
        (b"text", "base64", "Python knows no encoding 'base64'"),
        (b"text", "utf\0", "Python knows no encoding 'utf\\x00'"),
        (b"text", "undefined", "Cannot read the file of 'x' as undefined"),
    ],
)
def test_what_has_no_encoding_is_an_error(write, content, encoding, message):
    with pytest.raises(TableError) as caught:
        find_encoding(write(content), False, "x", encoding)
    assert message in str(caught.value)


def test_a_packed_file_that_swells_is_stopped(write, monkeypatch):
    monkeypatch.setattr(textfiles, "MAX_FILE_BYTES", 10_000_000)
    with pytest.raises(TableError, match="'x' holds more than 10,000,000 bytes"):
        find_encoding(write(gzip.compress(bytes(50_000_000), 1)), True, "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"id,text\n1,a\n", ","),
        (b"id;text\n1;Hello, world\n2;a, b, c\n", ";"),
        (b"id\ttext\n1\ta;b\n", "\t"),
        (b"id|text\n1|a, b; c\n", "|"),
        (b"text\nOne, two\nthree; four\n", ""),
        (b'text\n"One, two"\n', ""),
        (b'"a,b";"c"\n"1,2";"3"\n', ";"),
        (b'id;text\n1;"open\n2;a\n3;b\n', ";"),
        (b"", ""),
    ],
)
def test_the_delimiter_splits_most_rows_alike(write, content, expected):
    assert find_delimiter(write(content), False, "utf-8") == expected


def test_no_delimiter_splits_nothing(write):
    assert fields(write(b'a,b;c\n"d\ne"\n'), delimiter="") == [["a,b;c"], ["d\ne"]]
