import csv
import io
import json

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.errors import TableError
from chains.schema import Analysis, Detection, Entity, Recognition
from chains.tables import (
    RESULT_COLUMNS,
    Table,
    add_results,
    guess_text_column,
    name_result_columns,
    read_table,
    to_csv,
    to_jsonl,
)

# Any text that UTF-8 can hold, without NUL (an error when read).
cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
names = st.text(st.characters(categories=["L", "Nd"]), min_size=1, max_size=8)


@st.composite
def frames(draw):
    columns = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.tuples(*[cells] * len(columns)), min_size=1, max_size=6))
    return pd.DataFrame(rows, columns=columns, dtype="str")


def write(rows, delimiter=","):
    target = io.StringIO(newline="")
    csv.writer(target, delimiter=delimiter).writerows(rows)
    return target.getvalue()


def content(table):
    return [list(table.columns), *table.frame.to_numpy().tolist()]


def analysis(text="Ana vive en Lima.", language="spanish", probability=0.98765432, entities=()):
    return Analysis(
        text=text,
        detection=Detection(language=language, probability=probability),
        recognition=Recognition(entities=entities),
    )


ANA = Entity(text="Ana", type="person", start=0, end=3)
LIMA = Entity(text="Lima", type="location", start=12, end=16)


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
        (b"text,text,,text\n1,2,3,4\n", [["text", "text.1", "column 3", "text.2"], ["1", "2", "3", "4"]]),
        (b"text,text,text.1\n1,2,3\n", [["text", "text.2", "text.1"], ["1", "2", "3"]]),
        (b"text,column 3,\n1,2,3\n", [["text", "column 3", "column 3.1"], ["1", "2", "3"]]),
        (b"text,language,\na,b,\n", [["text", "language", "column 3"], ["a", "b", ""]]),
    ],
)
def test_tables_are_read_as_they_stand(source, expected):
    assert content(read_table(source)) == expected


@pytest.mark.parametrize(
    ("source", "encoding"),
    [
        ("text\nMálaga 😀\n".encode(), "utf-8"),
        ("text\nMálaga 😀\n".encode("utf-8-sig"), "utf-8-sig"),
        ("text\nMálaga 😀\n".encode("utf-16"), "utf-16"),
        (b"\xfe\xff" + "text\nMálaga 😀\n".encode("utf-16-be"), "utf-16"),
    ],
)
def test_unicode_encodings_are_detected(source, encoding):
    table = read_table(source)
    assert (table.encoding, content(table)) == (encoding, [["text"], ["Málaga 😀"]])


def test_windows_encoding_is_used_when_one_late_byte_is_not_utf_8():
    source = b"text\n" + b"plain\n" * 100_000 + "«déjà» – 5 €".encode("cp1252")
    table = read_table(source)
    assert (table.encoding, table.frame["text"].iloc[-1]) == ("cp1252", "«déjà» – 5 €")


def test_a_chosen_encoding_and_delimiter_are_obeyed():
    table = read_table("a;b,c\nñ;1,2\n".encode("latin-1"), encoding="latin-1", delimiter=",")
    assert content(table) == [["a;b", "c"], ["ñ;1", "2"]]


def test_a_chosen_utf_8_drops_the_byte_order_mark():
    assert read_table(b"\xef\xbb\xbftext\na\n", encoding="utf-8").columns == ("text",)


def test_the_header_keeps_the_names_of_the_file():
    assert read_table(b"text,text,\n1,2,3\n").header == ("text", "text", "")


def test_a_cell_may_be_longer_than_the_csv_default():
    assert len(read_table(b"text\n" + b"a" * 200_000).frame["text"][0]) == 200_000


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (b"", {}, "The file of 'x.csv' is empty"),
        (b"\xef\xbb\xbf\r\n \n", {}, "The file of 'x.csv' is empty"),
        (b"id,text\n", {}, "The file of 'x.csv' has a header but no rows"),
        (b"id,text\n\n\n", {}, "The file of 'x.csv' has a header but no rows"),
        (b"id,text\n1,a\n2,b,c\n", {}, "Row 2 (line 3) of 'x.csv' has 3 fields and the header 2 fields, split at ','"),
        (b"id,text\n1,a\n\n2\n", {}, "Row 3 (line 4) of 'x.csv' has 1 field and the header 2 fields"),
        (b'id,text\n1,"a\nb"\n2\n', {}, "Row 2 (line 4) of 'x.csv' has 1 field"),
        (b"text\na,b\n", {"delimiter": ","}, "Row 1 (line 2) of 'x.csv' has 2 fields and the header 1 field"),
        (b'id,text\n1,"a\n2,b\n', {}, "There is a broken quote near line 3 of 'x.csv'"),
        (b'id,text\n1,"a" b\n', {}, "There is a broken quote near line 2 of 'x.csv'"),
        (b"text\na\n\0b\n", {}, "There is a NUL character in line 3 of 'x.csv', read as utf-8"),
        ("text\na\n".encode("utf-16-le"), {}, "choose its encoding (perhaps utf-16)"),
        (b"text\n\x81\n", {}, "Cannot read the file of 'x.csv' as utf-8 or cp1252"),
        (b"\xff\xfea", {}, "Cannot read the file of 'x.csv' as utf-16"),
        (b"text\n\xe9\n", {"encoding": "utf-8"}, "Cannot read the file of 'x.csv' as utf-8: byte 5 does not fit"),
        (b"text\na\n", {"encoding": "utf-99"}, "Python knows no encoding 'utf-99'"),
        (b"text\na\n", {"delimiter": "::"}, "'::' cannot separate fields"),
        (b"text\na\n", {"delimiter": '"'}, "cannot separate fields"),
    ],
)
def test_what_cannot_be_read_is_an_error_in_words(source, options, message):
    with pytest.raises(TableError) as caught:
        read_table(source, name="x.csv", **options)
    assert message in str(caught.value)


def test_a_file_is_read_by_its_path_and_named_after_it(tmp_path):
    path = tmp_path / "messages.csv"
    path.write_bytes(b"text\na\n")
    assert read_table(path).name == "messages.csv"
    with pytest.raises(TableError, match=r"Cannot read '.*missing\.csv': No such file"):
        read_table(tmp_path / "missing.csv")


@pytest.mark.parametrize(
    ("source", "column"),
    [
        (b"id,text,title\n1,a,a very long title\n", "text"),
        (b"id, Mensaje ,title\n1,a,a very long title\n", " Mensaje "),
        (b"comment,TEXTE\na long comment,b\n", "TEXTE"),
        (b"id,words,author\n1234567,a b c d e f g h,Ana\n", "words"),
        (b"id,words\nab,cd\n", "id"),
        (b"text,Text\n1,2\n", "text"),
    ],
)
def test_the_text_column_is_guessed_by_name_then_by_length(source, column):
    assert guess_text_column(read_table(source)) == column


def test_texts_of_a_missing_column_is_an_error():
    table = read_table(b"id,text\n1,a\n", name="x.csv")
    assert table.texts("text") == ["a"]
    with pytest.raises(TableError, match="There is no column 'txt' of 'x.csv': choose one of 'id', 'text'"):
        table.texts("txt")


@given(frames())
def test_a_written_table_reads_back(frame):
    table = read_table(to_csv(frame, neutralise=False), delimiter=",")
    pd.testing.assert_frame_equal(table.frame, frame)
    assert table.columns == table.header == tuple(frame.columns)


@given(frames(), st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_the_delimiter_and_encoding_of_a_written_table_are_found(frame, delimiter, encoding):
    source = write([list(frame.columns), *frame.to_numpy().tolist()], delimiter).encode(encoding)
    table = read_table(source)
    pd.testing.assert_frame_equal(table.frame, frame)
    assert table.delimiter == (delimiter if len(frame.columns) > 1 else "")


@given(st.binary(max_size=60))
def test_any_bytes_give_a_table_or_a_table_error(source):
    try:
        table = read_table(source)
    except TableError:
        return
    assert isinstance(table, Table)
    assert len(set(table.columns)) == len(table.columns) == table.frame.shape[1]
    assert all(isinstance(cell, str) for row in table.frame.to_numpy() for cell in row)


def test_results_stand_at_the_right_of_every_input_column_and_row():
    frame = pd.DataFrame({"id": ["2", "1", "3"], "text": ["Ana vive en Lima.", "", "x"]}, dtype="str", index=[5, 9, 5])
    failed = Analysis(text="x", detection=Detection(language="french", probability=0.5), error="no reply")
    results = add_results(frame, [analysis(entities=(ANA, LIMA)), analysis("", "unknown", None), failed])
    assert list(results.columns) == ["id", "text", *RESULT_COLUMNS]
    assert results.astype(object).where(results.notna(), None).to_numpy().tolist() == [
        ["2", "Ana vive en Lima.", "spanish", 0.987654,
         '[{"text": "Ana", "type": "person", "start": 0, "end": 3}, '
         '{"text": "Lima", "type": "location", "start": 12, "end": 16}]', 1, 1, 0, ""],
        ["1", "", "unknown", None, "[]", 0, 0, 0, ""],
        ["3", "x", "", None, "", None, None, None, "no reply"],
    ]  # fmt: skip
    assert list(frame.columns) == ["id", "text"]


def test_an_input_column_is_never_overwritten():
    frame = pd.DataFrame({"text": ["a"], "language": ["mine"], "error (result)": ["mine"], "error": ["mine"]})
    results = add_results(frame, [analysis("a")])
    assert results.iloc[0, :4].tolist() == ["a", "mine", "mine", "mine"]
    assert results["language (result)"].tolist() == ["spanish"]
    assert results["error (result 2)"].tolist() == [""]


@given(st.lists(st.sampled_from([*RESULT_COLUMNS, "error (result)", "error (result 2)", "text"]), unique=True))
def test_result_names_are_new_and_unique(columns):
    new = list(name_result_columns(columns).values())
    assert len({*columns, *new}) == len(columns) + len(new)


def test_results_must_be_as_many_as_rows():
    with pytest.raises(ValueError, match="1 results cannot stand beside 2 rows"):
        add_results(pd.DataFrame({"text": ["a", "b"]}), [analysis()])


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_formulas_are_neutralised_in_cells_and_names(start):
    frame = pd.DataFrame({f"{start}name": [f"{start}1+1", f"a{start}"]}, dtype="str")
    assert content(read_table(to_csv(frame), delimiter=",")) == [[f"'{start}name"], [f"'{start}1+1"], [f"a{start}"]]


@given(frames())
def test_no_neutralised_cell_begins_a_formula(frame):
    rows = content(read_table(to_csv(frame), delimiter=","))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)


def test_csv_begins_with_a_byte_order_mark_and_leaves_unknown_numbers_empty():
    frame = pd.DataFrame({"né": pd.Series([-1, None], dtype="Int64"), "b": ["x", ""]})
    assert to_csv(frame) == "\ufeffné,b\r\n-1,x\r\n,\r\n".encode()


def test_json_lines_hold_entities_as_json():
    frame = pd.DataFrame({"text": ["Ana", "é"], "entities": ["mine", "[]"]}, dtype="str")
    results = add_results(frame, [analysis("Ana", entities=(ANA,)), Analysis(text="é", error="no reply")])
    first, second = to_jsonl(results).decode().splitlines()
    assert json.loads(first) == {
        "text": "Ana", "entities": "mine", "language": "spanish", "language_probability": 0.987654,
        "entities (result)": [{"text": "Ana", "type": "person", "start": 0, "end": 3}],
        "locations": 0, "people": 1, "organizations": 0, "error": "",
    }  # fmt: skip
    assert second == (
        '{"text": "é", "entities": "[]", "language": "", "language_probability": null, "entities (result)": null, '
        '"locations": null, "people": null, "organizations": null, "error": "no reply"}'
    )


@given(frames())
def test_json_lines_hold_every_input_cell(frame):
    results = add_results(frame, [analysis()] * len(frame))
    lines = [json.loads(line) for line in to_jsonl(results).decode().split("\n")[:-1]]
    columns = list(frame.columns)
    assert [[line[name] for name in columns] for line in lines] == frame.to_numpy().tolist()
