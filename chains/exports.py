"""Rows and their results out: CSV, JSON Lines, Parquet and Excel, in a stream, with cells that run no formulas; and
those that a person has corrected as a gold set."""

import base64
import csv
import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, BinaryIO

from chains.errors import TableError
from chains.schema import Analysis, Correction, Entity, Gold
from chains.tables import MISSING, Layout, Row, cell_text

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "FORMATS",
    "GOLD_FORMATS",
    "MEDIA_TYPES",
    "RESULT_COLUMNS",
    "SHAPES",
    "correct_record",
    "name_result_columns",
    "to_frame",
    "to_record",
    "write_gold",
    "write_results",
]

MEDIA_TYPES = {
    "csv": "text/csv; charset=utf-8",
    "jsonl": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
FORMATS = tuple(MEDIA_TYPES)
SHAPES = ("wide", "long")
GOLD_FORMATS = ("jsonl", "csv")
RESULT_COLUMNS = (
    *("language", "language_probability", "entities", "locations", "people", "organizations"),
    *("corrected", "error"),
)
COUNTED_TYPES = {"locations": "location", "people": "person", "organizations": "organization"}
# Of a line per entity: its row's number stands before the input columns, the rest after them.
NUMBER_COLUMN = "row"
ENTITY_COLUMNS = ("language", "entity", "type", "start", "end", "corrected")
# Beside the types of ``Layout``.
RESULT_TYPES = dict.fromkeys(("start", "end", NUMBER_COLUMN, *COUNTED_TYPES), "integer") | {
    "language_probability": "number",
    "entities": "entities",
    "corrected": "boolean",
}
# In a data frame; the others are text.
FRAME_TYPES = dict.fromkeys(COUNTED_TYPES, "Int64") | {"language_probability": "Float64", "corrected": "bool"}
# A spreadsheet runs a cell that begins so as a formula (https://owasp.org/www-community/attacks/CSV_Injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
PARQUET_ROWS = 10_000
PARQUET_CHARACTERS = 16_000_000
# https://support.microsoft.com/en-us/office/excel-specifications-and-limits-1672b34d-7043-467e-8e27-269d656771c3
MAX_SHEET_ROWS = 1_048_576
MAX_SHEET_CHARACTERS = 32_767
MAX_SHEET_DIGITS = 15  # of a number
# XML 1.0, section 2.2: what no document may hold.
NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
Record = dict[str, Any]
Columns = Sequence[tuple[str, str]]  # name and type
Cells = tuple[Any, ...]


def to_record(analysis: Analysis) -> Record:
    """One row of results as JSON values, by ``RESULT_COLUMNS``; what is not known is ``None``.

    ``entities`` is a list of ``{"text", "type", "start", "end"}``. A text with an error has nothing but the error.
    """
    record: Record = dict.fromkeys(RESULT_COLUMNS) | {"corrected": False, "error": analysis.error or ""}
    if analysis.error:
        return record
    if (detection := analysis.detection) is not None:
        record["language"] = detection.language
        if detection.probability is not None:
            record["language_probability"] = round(detection.probability, 6)
    if (recognition := analysis.recognition) is not None:
        record |= _of_entities(recognition.entities)
    return record


def correct_record(record: Record, correction: Correction) -> Record:
    """The row of results with the answer of a person, which has no probability, in the place of the model's."""
    answered = {"language": correction.language, "language_probability": None, "corrected": True, "error": ""}
    return record | answered | _of_entities(correction.entities)


def _of_entities(entities: Sequence[Entity]) -> Record:
    counts = Counter(entity.type for entity in entities)
    return {
        "entities": [entity.model_dump() for entity in entities],
        **{column: counts[type_] for column, type_ in COUNTED_TYPES.items()},
    }


def name_result_columns(columns: Iterable[str]) -> dict[str, str]:
    """Each result column's name beside the input ``columns``: ``language``, or if taken ``language (result)``."""
    return _name_beside(columns, RESULT_COLUMNS)


def _name_beside(columns: Iterable[str], added: Sequence[str]) -> dict[str, str]:
    taken = set(columns)
    names = {}
    for column in added:
        name, number = column, 1
        while name in taken:
            name = f"{column} (result)" if number == 1 else f"{column} (result {number})"
            number += 1
        names[column] = name
    return names


def write_results(
    target: BinaryIO,
    layout: Layout,
    results: Iterable[tuple[Row, Record]],
    *,
    format: str = "csv",
    shape: str = "wide",
    neutralise: bool = True,
) -> int:
    """The number of rows that were written into ``target``, which stays open; they are taken one after the other.

    ``wide``: a row per text, all input columns and then those of its record (see ``name_result_columns``).
    ``long``: a row per entity, with ``row`` (the text's number) before the input columns and ``language``, ``entity``,
    ``type``, ``start``, ``end`` and ``corrected`` after them, renamed in the same way; one without entities has none.

    - ``csv``: UTF-8 with a byte order mark, which lets spreadsheets read accents. ``neutralise`` puts ``'`` before text
      cells and column names that a spreadsheet would run as formulas; without it, the cells of a CSV file come back.
    - ``jsonl``: values keep their JSON types, a key that a row did not have stays away, entities are a list.
    - ``parquet``: input columns keep their types, entities are a list of structs.
    - ``xlsx``: text is text, never a formula. Characters that XML cannot hold become ``\N{REPLACEMENT CHARACTER}``, and
      a carriage return a line feed; integers of more than 15 digits are text, since Excel would round them.

    Raises:
        TableError: an Excel sheet cannot hold so many rows, or so long a cell.
        ValueError: no such format or shape.
    """
    if format not in FORMATS or shape not in SHAPES:
        raise ValueError(f"cannot write {format!r} {shape!r}: expected one of {FORMATS} and one of {SHAPES}")
    types = layout.types or ("text",) * len(layout.columns)
    inputs = list(zip(layout.columns, types, strict=True))
    columns: Columns
    if shape == "wide":
        columns, rows = inputs + _add_columns(layout, RESULT_COLUMNS), _widen(results)
    else:
        first, *added = _add_columns(layout, (NUMBER_COLUMN, *ENTITY_COLUMNS))
        columns, rows = [first, *inputs, *added], _lengthen(results)
    if format == "csv":
        return _write_csv(target, columns, rows, neutralise)
    write = {"jsonl": _write_json_lines, "parquet": _write_parquet, "xlsx": _write_excel}[format]
    return write(target, columns, rows)


def _add_columns(layout: Layout, added: Sequence[str]) -> list[tuple[str, str]]:
    named = _name_beside(layout.columns, added)
    return [(name, RESULT_TYPES.get(column, "text")) for column, name in named.items()]


def _widen(results: Iterable[tuple[Row, Record]]) -> Iterator[Cells]:
    for row, record in results:
        yield (*row.cells, *[record[column] for column in RESULT_COLUMNS])


def _lengthen(results: Iterable[tuple[Row, Record]]) -> Iterator[Cells]:
    for row, record in results:
        for entity in record["entities"] or ():
            found = [entity[key] for key in ("text", "type", "start", "end")]
            yield (row.number, *row.cells, record["language"], *found, record["corrected"])


def write_gold(target: BinaryIO, gold: Iterable[Gold], *, format: str = "jsonl", neutralise: bool = True) -> int:
    """The number of gold rows written into ``target``, in the forms that ``evaluation.read_gold`` reads.

    - ``jsonl``: ``{"text", "language", "entities": [{"start", "end", "text", "type"}]}``, exactly.
    - ``csv``: ``text,language``, where ``neutralise`` changes texts as in ``write_results``.
    """
    if format not in GOLD_FORMATS:
        raise ValueError(f"cannot write gold as {format!r}: expected one of {GOLD_FORMATS}")
    columns = [("text", "text"), ("language", "text"), ("entities", "entities")]
    if format == "csv":
        return _write_csv(target, columns[:2], ((row.text, row.language) for row in gold), neutralise)
    rows = ((row.text, row.language, [_to_span(entity) for entity in row.entities]) for row in gold)
    return _write_json_lines(target, columns, rows)


def _to_span(entity: Entity) -> Record:
    return {"start": entity.start, "end": entity.end, "text": entity.text, "type": entity.type}


def _write_csv(target: BinaryIO, columns: Columns, rows: Iterable[Cells], neutralise: bool) -> int:
    change = _neutralise if neutralise else cell_text
    count = 0
    text = io.TextIOWrapper(target, encoding="utf-8-sig", errors="replace", newline="")
    try:
        # A carriage return inside a cell is quoted only because it is part of the line end.
        writer = csv.writer(text, lineterminator="\r\n")
        writer.writerow([change(name) for name, _ in columns])
        for cells in rows:
            writer.writerow([change(cell) for cell in cells])
            count += 1
        text.flush()
    finally:
        text.detach()  # else the end of ``text`` would close the target
    return count


def _neutralise(cell: Any) -> str:
    text = cell_text(cell)
    return f"'{text}" if isinstance(cell, str) and text.startswith(FORMULA_STARTS) else text


def _write_json_lines(target: BinaryIO, columns: Columns, rows: Iterable[Cells]) -> int:
    count = 0
    names = [name for name, _ in columns]
    for cells in rows:
        line = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not MISSING}
        target.write(_to_json(line).encode() + b"\n")
        count += 1
    return count


def _to_json(value: Any) -> str:
    """JSON in one line that UTF-8 can hold: half characters are escaped, numbers that JSON does not know are null."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_to_json_value)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, default=_to_json_value)
    except ValueError:
        return _to_json(_without_nan(value))
    return text


def _to_json_value(value: Any) -> Any:
    """What JSON has no type for: moments in ISO 8601, bytes in base64, else as text."""
    if isinstance(value, (date, time)):
        return value.isoformat()
    return list(value) if isinstance(value, (tuple, set)) else cell_text(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return {key: _without_nan(item) for key, item in value.items()} if isinstance(value, dict) else value


def _write_parquet(target: BinaryIO, columns: Columns, rows: Iterable[Cells]) -> int:
    import pyarrow
    from pyarrow import parquet

    fields, changes = [], []
    for name, type_ in columns:
        field, change = _to_arrow(name, type_)
        fields.append(field)
        changes.append(change)
    count = 0
    with parquet.ParquetWriter(target, pyarrow.schema(fields)) as writer:
        for batch in _batches(rows):
            arrays = [
                pyarrow.array(list(map(change, cells)), type=field.type)
                for field, change, cells in zip(fields, changes, zip(*batch, strict=True), strict=True)
            ]
            writer.write_batch(pyarrow.record_batch(arrays, schema=pyarrow.schema(fields)))
            count += len(batch)
    return count


def _batches(rows: Iterable[Cells]) -> Iterator[list[Cells]]:
    """The rows, so many at once as fit well into memory."""
    batch: list[Cells] = []
    size = 0
    for cells in rows:
        batch.append(cells)
        size += sum(len(cell) for cell in cells if isinstance(cell, (str, bytes)))
        if len(batch) == PARQUET_ROWS or size > PARQUET_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _to_arrow(name: str, type_: str) -> tuple[Any, Callable[[Any], Any]]:
    """The Arrow field of a column, and what makes a cell fit it; see ``Layout.types``."""
    import pyarrow

    entity = pyarrow.struct({"text": "string", "type": "string", "start": "int64", "end": "int64"})
    known: dict[str, tuple[Any, Callable[[Any], Any]]] = {
        "text": (pyarrow.string(), _to_string),
        "json": (pyarrow.string(), _to_string),
        "integer": (pyarrow.int64(), _to_value),
        "number": (pyarrow.float64(), _to_float),
        "boolean": (pyarrow.bool_(), _to_value),
        "datetime": (pyarrow.timestamp("us"), _to_value),
        "date": (pyarrow.date32(), _to_value),
        "entities": (pyarrow.list_(entity), _to_value),
    }
    if type_ in known:
        arrow, change = known[type_]
        return pyarrow.field(name, arrow), change
    field = pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(type_))).field(0)
    # A row that could not be read has nulls even where the file has none.
    return field.with_name(name).with_nullable(True), _to_value


def _to_value(cell: Any) -> Any:
    return None if cell is MISSING else cell


def _to_float(cell: Any) -> float | None:
    return None if cell is MISSING or cell is None else float(cell)


def _to_string(cell: Any) -> str | None:
    return None if cell is MISSING or cell is None else _whole(cell_text(cell))


def _whole(text: str) -> str:
    """The text with ``?`` for half characters, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _write_excel(target: BinaryIO, columns: Columns, rows: Iterable[Cells]) -> int:
    import openpyxl
    from openpyxl.cell import WriteOnlyCell

    names = [name for name, _ in columns]
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("results")

    def to_cell(value: Any, name: str, row: str) -> Any:
        value = _to_excel(value)
        if not isinstance(value, str):
            return value
        # Excel counts in UTF-16.
        length = len(value) if value.isascii() else len(value.encode("utf-16-le", "replace")) // 2
        if length > MAX_SHEET_CHARACTERS:
            raise TableError(
                f"{row} has {length:,} characters in column {name!r}, and an Excel cell holds at most "
                f"{MAX_SHEET_CHARACTERS:,}: choose CSV, JSON Lines or Parquet."
            )
        # As readers of XML do. Not left to them: openpyxl writes carriage returns in another way where lxml is.
        value = value.replace("\r\n", "\n").replace("\r", "\n")
        cell = WriteOnlyCell(sheet, NO_XML.sub("\ufffd", value))
        cell.data_type = "s"  # openpyxl takes text that begins with = for a formula
        return cell

    count = 0
    try:
        sheet.append([to_cell(name, name, "The header") for name in names])
        for count, cells in enumerate(rows, 1):
            if count == MAX_SHEET_ROWS:
                raise TableError(
                    f"There are more than {MAX_SHEET_ROWS - 1:,} rows, the most that an Excel sheet can hold below its "
                    "header: choose CSV, JSON Lines or Parquet."
                )
            sheet.append([to_cell(cell, name, f"Row {count}") for cell, name in zip(cells, names, strict=True)])
        book.save(target)
    finally:
        if not sheet.closed:  # something went wrong: openpyxl would keep its temporary file
            sheet.close()
            sheet._writer.cleanup()
    return count


def _to_excel(cell: Any) -> Any:
    """A cell as Excel can hold it: a number of up to 15 digits, a moment since 1900 without a zone, or text."""
    if cell is None or cell is MISSING or isinstance(cell, bool):
        return None if cell is MISSING else cell
    if (
        isinstance(cell, (int, float))
        and math.isfinite(cell)
        and (isinstance(cell, float) or abs(cell) < 10**MAX_SHEET_DIGITS)
    ):
        return cell
    if isinstance(cell, Decimal) and cell.is_finite() and len(cell.as_tuple().digits) <= MAX_SHEET_DIGITS:
        return float(cell)
    if isinstance(cell, (date, time)):
        is_known = getattr(cell, "tzinfo", None) is None and getattr(cell, "year", 2000) > 1900
        return cell if is_known else cell.isoformat()
    return cell_text(cell)


def to_frame(layout: Layout, results: Iterable[tuple[Row, Record]]) -> "pd.DataFrame":
    """The rows as a table: input cells as text, then the result columns (see ``name_result_columns``).

    ``language``, ``entities`` (a JSON list) and ``error`` are text, ``""`` when not known; ``language_probability``
    is ``Float64`` and the counts are ``Int64``, ``<NA>`` when not known; ``corrected`` is ``bool``.
    """
    import pandas as pd

    rows, records = [], []
    for row, record in results:
        rows.append([_whole(cell_text(cell)) for cell in row.cells])
        records.append(record)
    frame = pd.DataFrame(rows, columns=list(layout.columns), dtype="str")
    added = {}
    for column, name in name_result_columns(layout.columns).items():
        cells = [record[column] for record in records]
        if column == "entities":
            cells = ["" if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
        elif column in {"language", "error"}:
            cells = [cell or "" for cell in cells]
        dtype = FRAME_TYPES.get(column, "str")
        added[name] = pd.Series(cells, dtype=dtype)
    return pd.concat([frame, pd.DataFrame(added)], axis=1)
