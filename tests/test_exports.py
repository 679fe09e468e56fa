import csv
import io
import json
import tempfile
import tracemalloc
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from itertools import islice
from pathlib import Path

import openpyxl
import pandas as pd
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from chains import exports
from chains.errors import TableError
from chains.exports import (
    FORMATS,
    RESULT_COLUMNS,
    SHAPES,
    correct_record,
    name_result_columns,
    to_frame,
    to_record,
    write_results,
)
from chains.schema import Analysis, Correction, Detection, Entity, Recognition
from chains.tables import MISSING, Layout, Row, scan
from tests.test_tables import NAUGHTY, cells, csv_tables, names, values, write_csv, write_excel, write_parquet

ANA = Entity(text="Ana", type="person", start=0, end=3)
LIMA = Entity(text="Lima", type="location", start=12, end=16)
TEXT = Layout("csv", ("text",), ("text",), types=("text",))
EMPTY = dict.fromkeys(RESULT_COLUMNS) | {"corrected": False, "error": ""}


def analysis(text="Ana vive en Lima.", language="spanish", probability=0.98765432, entities=()):
    return Analysis(
        text=text,
        detection=Detection(language=language, probability=probability),
        recognition=Recognition(entities=entities),
    )


BOTH = to_record(analysis(entities=(ANA, LIMA)))
NONE = to_record(analysis("", "unknown", None))
FAILED = to_record(Analysis(text="x", detection=Detection(language="french", probability=0.5), error="no reply"))


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")

    def read(source, name="x.csv", **options):
        path = folder / name
        path.write_bytes(source)
        return scan(path, **options)

    return read


def write(layout, rows, records=None, **options):
    """What is written of rows with these records, by default empty ones."""
    target = io.BytesIO()
    rows = list(rows)
    written = write_results(target, layout, zip(rows, records or [EMPTY] * len(rows), strict=True), **options)
    assert not target.closed
    assert written == len(rows) or options.get("shape") == "long"
    return target.getvalue()


def texts(*cells):
    return [Row(number, (cell,)) for number, cell in enumerate(cells, 1)]


def read_csv(content):
    return list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def read_json_lines(content):
    return [json.loads(line) for line in content.decode().split("\n")[:-1]]


def read_excel(content):
    return [list(row) for row in openpyxl.load_workbook(io.BytesIO(content)).active.iter_rows()]


def excel_values(content):
    return [[cell.value for cell in row] for row in read_excel(content)]


def test_a_record_holds_what_is_known():
    assert BOTH == {
        "language": "spanish",
        "language_probability": 0.987654,
        "entities": [
            {"text": "Ana", "type": "person", "start": 0, "end": 3},
            {"text": "Lima", "type": "location", "start": 12, "end": 16},
        ],
        "locations": 1,
        "people": 1,
        "organizations": 0,
        "corrected": False,
        "error": "",
    }
    assert NONE == EMPTY | {"language": "unknown", "entities": [], "locations": 0, "people": 0, "organizations": 0}
    assert FAILED == EMPTY | {"error": "no reply"}


@given(st.lists(st.sampled_from([*RESULT_COLUMNS, "error (result)", "error (result 2)", "text"]), unique=True))
def test_result_names_are_new_and_unique(columns):
    new = list(name_result_columns(columns).values())
    assert len({*columns, *new}) == len(columns) + len(new)


ROWS = [Row(1, ("2", "Ana vive en Lima.")), Row(2, ("1", "")), Row(3, ("3", "x"))]
LAYOUT = Layout("csv", ("id", "text"), ("id", "text"), types=("text", "text"))
ENTITIES = (
    '[{"text": "Ana", "type": "person", "start": 0, "end": 3}, '
    '{"text": "Lima", "type": "location", "start": 12, "end": 16}]'
)


def test_results_stand_at_the_right_of_every_input_column_and_row():
    frame = to_frame(LAYOUT, zip(ROWS, [BOTH, NONE, FAILED], strict=True))
    assert list(frame.columns) == ["id", "text", *RESULT_COLUMNS]
    assert frame.astype(object).where(frame.notna(), None).to_numpy().tolist() == [
        ["2", "Ana vive en Lima.", "spanish", 0.987654, ENTITIES, 1, 1, 0, False, ""],
        ["1", "", "unknown", None, "[]", 0, 0, 0, False, ""],
        ["3", "x", "", None, "", None, None, None, False, "no reply"],
    ]
    expected = ["str", "str", "str", "Float64", "str", "Int64", "Int64", "Int64", "bool", "str"]
    assert [str(dtype) for dtype in frame.dtypes] == expected


def test_a_frame_without_rows_has_its_columns():
    frame = to_frame(LAYOUT, [])
    assert list(frame.columns) == ["id", "text", *RESULT_COLUMNS]
    assert [str(dtype) for dtype in frame.dtypes[:4]] == ["str", "str", "str", "Float64"]
    assert len(frame) == 0


def test_a_frame_holds_every_cell_as_text():
    layout = Layout("jsonl", ("a", "b", "c", "d", "e"), ("a", "b", "c", "d", "e"))
    row = Row(1, (None, MISSING, [1, "é"], 1.5, "half \ud800"))
    assert to_frame(layout, [(row, EMPTY)]).iloc[0, :5].tolist() == ["", "", '[1, "é"]', "1.5", "half ?"]


@pytest.mark.parametrize("record", [BOTH, FAILED])
def test_a_corrected_row_has_the_answer_of_the_person_and_says_so(record):
    corrected = correct_record(record, Correction(language="unknown", entities=(LIMA,)))
    expected = {
        "language": "unknown", "language_probability": None, "entities": [LIMA.model_dump()],
        "locations": 1, "people": 0, "organizations": 0, "corrected": True, "error": "",
    }  # fmt: skip
    assert corrected == expected and not record["corrected"]
    row = Row(1, ("7", "Ana vive en Lima."))
    assert read_json_lines(write(LAYOUT, [row], [corrected], format="jsonl")) == [
        {"id": "7", "text": "Ana vive en Lima."} | expected
    ]
    assert read_csv(write(LAYOUT, [row], [corrected], shape="long"))[1][-2:] == ["16", "True"]
    assert parquet.read_table(io.BytesIO(write(LAYOUT, [row], [corrected], format="parquet"))).to_pylist()[0][
        "corrected"
    ]
    assert excel_values(write(LAYOUT, [row], [corrected], format="xlsx"))[1][8] is True
    assert to_frame(LAYOUT, [(row, corrected)])["corrected"].tolist() == [True]


def test_an_input_column_is_never_overwritten():
    columns = ("text", "language", "error (result)", "error")
    layout = Layout("csv", columns, columns, types=("text",) * 4)
    row = Row(1, ("a", "mine", "mine", "mine"))
    frame = to_frame(layout, [(row, BOTH)])
    assert frame.iloc[0, :4].tolist() == ["a", "mine", "mine", "mine"]
    assert frame["language (result)"].tolist() == ["spanish"]
    assert frame["error (result 2)"].tolist() == [""]
    assert read_csv(write(layout, [row], [BOTH]))[0] == list(frame.columns)


def test_wide_csv_has_a_row_per_text():
    content = write(LAYOUT, ROWS, [BOTH, NONE, FAILED])
    assert content.startswith(b"\xef\xbb\xbfid,text,language,")
    assert content.count(b"\r\n") == 4
    assert read_csv(content)[1:] == [
        ["2", "Ana vive en Lima.", "spanish", "0.987654", ENTITIES, "1", "1", "0", "False", ""],
        ["1", "", "unknown", "", "[]", "0", "0", "0", "False", ""],
        ["3", "x", "", "", "", "", "", "", "False", "no reply"],
    ]


def test_long_csv_has_a_row_per_entity():
    layout = Layout("csv", ("type", "text"), ("type", "text"), types=("text", "text"))
    target = io.BytesIO()
    assert write_results(target, layout, zip(ROWS, [BOTH, NONE, FAILED], strict=True), shape="long") == 2
    assert read_csv(target.getvalue()) == [
        ["row", "type", "text", "language", "entity", "type (result)", "start", "end", "corrected"],
        ["1", "2", "Ana vive en Lima.", "spanish", "Ana", "person", "0", "3", "False"],
        ["1", "2", "Ana vive en Lima.", "spanish", "Lima", "location", "12", "16", "False"],
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_formulas_are_neutralised_in_cells_and_names(start):
    layout = Layout("csv", (f"{start}name",), (f"{start}name",), types=("text",))
    rows = texts(f"{start}1+1", f"a{start}")
    assert [row[0] for row in read_csv(write(layout, rows))] == [f"'{start}name", f"'{start}1+1", f"a{start}"]
    expected = [f"{start}name", f"{start}1+1", f"a{start}"]
    assert [row[0] for row in read_csv(write(layout, rows, neutralise=False))] == expected


def test_an_entity_is_neutralised_and_a_number_is_not():
    record = EMPTY | {"entities": [{"text": "=Ana", "type": "person", "start": 0, "end": 4}], "language": "@x"}
    layout = Layout("jsonl", ("n",), ("n",), types=("integer",))
    assert read_csv(write(layout, texts(-5), [record], shape="long"))[1] == [
        "1",
        "-5",
        "'@x",
        "'=Ana",
        "person",
        "0",
        "4",
        "False",
    ]


@given(csv_tables())
def test_no_neutralised_cell_begins_a_formula(rows):
    layout = Layout("csv", tuple(rows[0]), tuple(rows[0]), types=("text",) * len(rows[0]))
    content = write(layout, [Row(number, tuple(row)) for number, row in enumerate(rows[1:], 1)])
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in read_csv(content) for cell in row)


def test_json_lines_keep_the_types_of_json():
    layout = Layout("jsonl", ("text", "entities"), ("text", "entities"), types=("text", "json"))
    rows = [Row(1, ("Ana", {"x": [1, 1.0, True, None]})), Row(2, (MISSING, None)), Row(3, (MISSING, MISSING), "broken")]
    assert read_json_lines(write(layout, rows, [BOTH, NONE, FAILED], format="jsonl")) == [
        {"text": "Ana", "entities": {"x": [1, 1.0, True, None]}, **_renamed(BOTH)},
        {"entities": None, **_renamed(NONE)},
        _renamed(FAILED),
    ]


def _renamed(record):
    return {"entities (result)" if key == "entities" else key: value for key, value in record.items()}


def test_json_lines_hold_what_json_has_no_type_for():
    when = datetime(2024, 5, 1, 12, 30)
    row = Row(
        1, (when, date(2024, 5, 1), time(12), Decimal("1.10"), b"\xff", float("nan"), [float("inf"), {"a": when}])
    )
    names = tuple("abcdefg")
    line = read_json_lines(write(Layout("parquet", names, names), [row], format="jsonl"))[0]
    assert [line[name] for name in names] == [
        "2024-05-01T12:30:00", "2024-05-01", "12:00:00", "1.10", "/w==", None, [None, {"a": "2024-05-01T12:30:00"}],
    ]  # fmt: skip


def test_half_a_character_comes_back_from_json_lines_and_costs_nothing_elsewhere(read):
    table = read(b'{"text": "a\\ud800", "\\udfff": 1, "?": 2}\n', "x.jsonl")
    assert table.columns == ("text", "?", "?.1")
    line = read_json_lines(write(table.layout, table.rows(), format="jsonl"))[0]
    assert (line["text"], line["?"], line["?.1"]) == ("a\ud800", 1, 2)
    assert read_csv(write(table.layout, table.rows()))[1][0] == "a?"
    assert parquet.read_table(io.BytesIO(write(table.layout, table.rows(), format="parquet")))["text"].to_pylist() == [
        "a?"
    ]
    assert excel_values(write(table.layout, table.rows(), format="xlsx"))[1][0] == "a\ufffd"


def test_parquet_has_entities_as_structs_and_numbers_as_numbers():
    written = parquet.read_table(io.BytesIO(write(LAYOUT, ROWS, [BOTH, NONE, FAILED], format="parquet")))
    assert {field.name: str(field.type) for field in written.schema} == {
        "id": "string",
        "text": "string",
        "language": "string",
        "language_probability": "double",
        "entities": "list<element: struct<text: string, type: string, start: int64, end: int64>>",
        "locations": "int64",
        "people": "int64",
        "organizations": "int64",
        "corrected": "bool",
        "error": "string",
    }
    assert written.to_pylist() == [
        {"id": "2", "text": "Ana vive en Lima."} | BOTH,
        {"id": "1", "text": ""} | NONE,
        {"id": "3", "text": "x"} | FAILED,
    ]


WHEN = datetime(2024, 5, 1, 12, 30, 1, 123456)
ARROW = {
    "int8": pyarrow.array([1, None], pyarrow.int8()),
    "uint64": pyarrow.array([2**64 - 1, None], pyarrow.uint64()),
    "float": pyarrow.array([0.1, None], pyarrow.float32()),
    "nan": pyarrow.array([float("nan"), None]),
    "large": pyarrow.array(["a", None], pyarrow.large_string()),
    "binary": pyarrow.array([b"\xff", None]),
    "ns": pyarrow.array([1234567890123456789, None], pyarrow.timestamp("ns")),
    "zone": pyarrow.array([WHEN, None], pyarrow.timestamp("us", tz="Europe/Madrid")),
    "date": pyarrow.array([date(1500, 1, 1), None]),
    "time": pyarrow.array([time(12, 0, 1), None], pyarrow.time32("s")),
    "duration": pyarrow.array([1001, None], pyarrow.duration("ns")),
    "decimal": pyarrow.array([Decimal("1.10"), None], pyarrow.decimal128(10, 2)),
    "struct": pyarrow.array([{"a": 1, "b": ["x"]}, None]),
    "map": pyarrow.array([[("k", 1)], None], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    "category": pyarrow.array(["a", None]).dictionary_encode(),
    "null": pyarrow.nulls(2),
}


def test_parquet_columns_keep_their_types_and_values(read):
    source = write_parquet(ARROW)
    table = read(source, "x.parquet")
    before = parquet.read_table(io.BytesIO(source))
    after = parquet.read_table(io.BytesIO(write(table.layout, table.rows(), format="parquet")))
    for name in ARROW:
        assert after.schema.field(name) == before.schema.field(name)
        # NaN equals nothing, not even itself.
        assert str(after[name].to_pylist()) == str(before[name].to_pylist())


def test_parquet_of_a_required_column_holds_a_row_that_could_not_be_read():
    field = pyarrow.field("n", pyarrow.int64(), nullable=False)
    target = io.BytesIO()
    parquet.write_table(pyarrow.table([[1]], schema=pyarrow.schema([field])), target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.parquet"
        path.write_bytes(target.getvalue())
        layout = scan(path).layout
    written = write(layout, [Row(1, (1,)), Row(2, (None,), "broken")], format="parquet")
    assert parquet.read_table(io.BytesIO(written))["n"].to_pylist() == [1, None]


@pytest.mark.parametrize(
    ("type_", "cells", "expected"),
    [
        ("integer", [1, None, MISSING], [1, None, None]),
        ("number", [1, 1.5, MISSING], [1.0, 1.5, None]),
        ("boolean", [True, None], [True, None]),
        ("json", ["a", 1, [True], {"a": None}, None], ["a", "1", "[true]", '{"a": null}', None]),
        ("datetime", [WHEN, None], [WHEN, None]),
        ("date", [date(2024, 5, 1)], [date(2024, 5, 1)]),
    ],
)
def test_typed_columns_go_into_parquet(type_, cells, expected):
    layout = Layout("jsonl", ("x",), ("x",), types=(type_,))
    written = write(layout, texts(*cells), format="parquet")
    assert parquet.read_table(io.BytesIO(written))["x"].to_pylist() == expected


def test_parquet_is_written_in_groups_of_rows(monkeypatch):
    monkeypatch.setattr(exports, "PARQUET_ROWS", 3)
    monkeypatch.setattr(exports, "PARQUET_CHARACTERS", 10)
    written = parquet.ParquetFile(io.BytesIO(write(TEXT, texts("a", "b", "c", "d" * 11, "e"), format="parquet")))
    assert [written.metadata.row_group(group).num_rows for group in range(3)] == [3, 1, 1]
    assert written.read(["text"])["text"].to_pylist() == ["a", "b", "c", "d" * 11, "e"]


@pytest.mark.parametrize(
    "text", ["=1+1", "=SUM(A1)", "+1", "-1", "@x", "#N/A", "123", "1e5", "TRUE", "2024-05-01", " a "]
)
def test_excel_holds_text_as_text(text):
    cell = read_excel(write(TEXT, texts(text), format="xlsx"))[1][0]
    assert (cell.value, cell.data_type) == (text, "s")


@pytest.mark.parametrize("text", ["=x", "\x01name"])
def test_excel_holds_names_as_text(text):
    cell = read_excel(write(Layout("csv", (text,), (text,)), texts("a"), format="xlsx"))[0][0]
    assert (cell.value, cell.data_type) == (text.replace("\x01", "\ufffd"), "s")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (None, None),
        (MISSING, None),
        (True, True),
        (5, 5),
        (10**15 - 1, 10**15 - 1),
        (-(10**15), "-1000000000000000"),
        (1.5, 1.5),
        (float("nan"), "nan"),
        (Decimal("1.10"), 1.1),
        (Decimal("1.1234567890123456789"), "1.1234567890123456789"),
        (datetime(2024, 5, 1, 12, 30), datetime(2024, 5, 1, 12, 30)),
        (date(2024, 5, 1), datetime(2024, 5, 1)),
        (date(1500, 5, 1), "1500-05-01"),
        (datetime(2024, 5, 1, tzinfo=timezone(timedelta(hours=2))), "2024-05-01T00:00:00+02:00"),
        (time(12, 30), time(12, 30)),
        ([1, "é"], '[1, "é"]'),
        (b"\xff", "/w=="),
        ("a\0b\ud800\uffff", "a\ufffdb\ufffd\ufffd"),
        ("a\r\nb\rc", "a\nb\nc"),
        ("", None),
    ],
)
def test_excel_holds_what_it_can_and_text_otherwise(cell, expected):
    rows = excel_values(write(Layout("jsonl", ("x", "y"), ("x", "y")), [Row(1, (cell, "kept"))], format="xlsx"))
    assert rows[1][:2] == [expected, "kept"]


def test_excel_has_no_room_for_a_long_cell():
    assert excel_values(write(TEXT, texts("a" * 32_767), format="xlsx"))[1][0] == "a" * 32_767
    with pytest.raises(TableError, match=r"Row 2 has 32,768 characters in column 'text', .* choose CSV, JSON Lines or"):
        write(TEXT, texts("a", "😀" * 16_384), format="xlsx")


def test_excel_has_no_room_for_too_many_rows_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(exports, "MAX_SHEET_ROWS", 3)
    assert len(excel_values(write(TEXT, texts("a", "b"), format="xlsx"))) == 3
    with pytest.raises(TableError, match="There are more than 2 rows"):
        write(TEXT, texts("a", "b", "c"), format="xlsx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_nothing_to_write_gives_a_file_without_rows(read, format):
    target = io.BytesIO()
    assert write_results(target, LAYOUT, [], format=format, shape="long") == 0
    with pytest.raises(TableError, match="is empty|no rows"):
        read(target.getvalue(), "x." + format)


@pytest.mark.parametrize(("format", "shape"), [("xls", "wide"), ("csv", "tall")])
def test_a_wrong_format_or_shape_is_refused(format, shape):
    with pytest.raises(ValueError, match="expected one of"):
        write_results(io.BytesIO(), LAYOUT, [], format=format, shape=shape)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_failure_on_the_way_leaves_the_target_open(format, shape):
    def results():
        yield ROWS[0], BOTH
        raise TableError("the file has changed")

    target = io.BytesIO()
    with pytest.raises(TableError, match="the file has changed"):
        write_results(target, LAYOUT, results(), format=format, shape=shape)
    assert not target.closed


def test_naughty_strings_come_back(read):
    source = write_csv([["id", "words"], *([str(number), text] for number, text in enumerate(NAUGHTY))]).encode()
    table = read(source)
    before = [row.cells for row in table.rows()]
    for format in ("csv", "jsonl", "parquet"):
        again = read(write(table.layout, table.rows(), format=format, neutralise=False), "y." + format)
        assert [row.cells[:2] for row in again.rows()] == before
    # Excel's cells are shorter and hold no control characters; the others stay what they are.
    usual = [row for row in table.rows() if len(row.cells[1]) < 32_767 and row.cells[1].isprintable()]
    again = read(write(table.layout, usual, format="xlsx"), "y.xlsx")
    assert [(row.cells[0], row.cells[1] or "") for row in again.rows()] == [row.cells for row in usual]


@given(csv_tables(), st.sampled_from(["csv", "jsonl", "parquet"]))
def test_input_cells_come_back_as_they_were(read, rows, format):
    table = read(write_csv(rows).encode(), encoding="utf-8", delimiter=",", has_header=True)
    content = write(table.layout, table.rows(), format=format, neutralise=False)
    again = read(content, "y." + format, has_header=True)
    width = len(rows[0])
    assert [list(again.columns[:width]), *(list(row.cells[:width]) for row in again.rows())] == rows


@given(st.lists(st.dictionaries(names, values, max_size=3), min_size=1, max_size=5).filter(any))
def test_json_values_come_back_as_they_were(read, records):
    table = read("".join(json.dumps(record) + "\n" for record in records).encode(), "x.jsonl")
    added = name_result_columns(table.columns).values()
    lines = read_json_lines(write(table.layout, table.rows(), format="jsonl"))
    assert [{key: value for key, value in line.items() if key not in added} for line in lines] == records


@given(st.lists(st.lists(st.none() | st.integers() | st.floats() | st.booleans() | cells, min_size=2, max_size=2)))
def test_any_cells_can_be_written_in_any_format(rows):
    layout = Layout("jsonl", ("a", "b"), ("a", "b"), types=("json", "json"))
    for format in FORMATS:
        write(layout, [Row(number, tuple(row)) for number, row in enumerate(rows, 1)], format=format)


def test_excel_rows_come_back(read):
    when = datetime(2024, 5, 1, 12, 30)
    table = read(write_excel([["text", "at", "n"], ["=a", when, 1], ["b", None, 2.5]]), "x.xlsx")
    for format in ("parquet", "xlsx"):
        again = read(write(table.layout, table.rows(), format=format), "y." + format)
        assert [row.cells[:3] for row in again.rows()] == [row.cells for row in table.rows()]


@pytest.mark.parametrize("format", ["csv", "jsonl", "parquet", "xlsx"])
def test_many_rows_take_no_more_memory_than_few(monkeypatch, format):
    monkeypatch.setattr(exports, "PARQUET_ROWS", 500)

    class Nowhere(io.RawIOBase):
        def writable(self):
            return True

        def write(self, content):
            return len(content)

    write(TEXT, texts("a"), format=format)  # what is imported and kept at the first time
    peaks = []
    for number in (1_000, 5_000):
        tracemalloc.start()
        try:
            results = ((Row(row, (f"{row} {'a' * 100}",)), BOTH) for row in range(1, number + 1))
            assert write_results(Nowhere(), TEXT, results, format=format) == number
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 100_000


def test_frames_are_what_pandas_would_make_of_the_texts():
    frame = to_frame(TEXT, islice(zip(texts("NA", "001", ""), [EMPTY] * 3, strict=True), 3))
    pd.testing.assert_frame_equal(frame[["text"]], pd.DataFrame({"text": ["NA", "001", ""]}, dtype="str"))
