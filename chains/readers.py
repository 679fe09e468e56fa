"""The formats of tables: for each, what ``scan_…`` finds out of a whole file, and the rows that ``read_…`` gives by it.

A scan gives the layout and the rows that it has, to be counted. Wrong rows are rows with an error, and a file that is
wrong as a whole is a ``TableError``. What fails below, such as ``OSError``, is put into words by ``tables``.
"""

import base64
import json
import logging
import math
import struct
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from chains.errors import TableError
from chains.rows import (
    MAX_COLUMNS,
    MISSING,
    SNIFFED_ROWS,
    Layout,
    Row,
    cell_text,
    check_width,
    is_header,
    merge_types,
    name_columns,
    nothing_in,
    number_rows,
    type_of,
)
from chains.textfiles import MAX_CELL_CHARACTERS, MAX_FILE_BYTES, find_delimiter, read_blocks, read_records

__all__ = [
    "is_json_lines",
    "read_csv",
    "read_excel",
    "read_json_lines",
    "read_parquet",
    "scan_csv",
    "scan_excel",
    "scan_json_lines",
    "scan_parquet",
]

LOG = logging.getLogger(__name__)
# What openpyxl holds in memory at once; twice what a sheet full of long texts has.
MAX_SHARED_STRINGS_BYTES = 500_000_000
MAX_SHEET_ROWS = 1_048_576
BATCH_ROWS = 1_024


def scan_csv(
    path: Path, name: str, encoding: str, is_gzip: bool, delimiter: str | None, has_header: bool | None
) -> tuple[Layout, Iterator[Row]]:
    if delimiter is None:
        delimiter = find_delimiter(path, is_gzip, encoding)
    records = (record for record in read_records(read_blocks(path, is_gzip, encoding), delimiter) if any(record[1:]))
    first = list(islice(records, SNIFFED_ROWS))
    if not first or (len(first) == 1 and not any(map(str.strip, first[0][1])) and not first[0][2]):
        raise nothing_in(name)
    line, header, error = first[0]
    if has_header is None:
        has_header = bool(error) or is_header([fields for _, fields, _ in first])
    if not has_header:
        widths = Counter(len(fields) for _, fields, error in first if not error)
        header = [""] * max(widths, key=lambda width: widths[width], default=1)
    elif error:
        raise TableError(f"The header (line {line}) of {name!r} {error}")
    check_width(len(header), name)
    columns = name_columns(header)
    types = ("text",) * len(columns)
    layout = Layout(
        "csv", columns, tuple(header) if has_header else (), encoding, delimiter, has_header, is_gzip, types
    )
    return layout, read_csv(path, layout)


def read_csv(path: Path, layout: Layout) -> Iterator[Row]:
    records = read_records(read_blocks(path, layout.is_gzip, layout.encoding), layout.delimiter)
    width = len(layout.columns)
    for number, line, fields, error in number_rows(records, layout.has_header):
        if len(fields) == width and not error:
            yield Row(number, tuple(fields))
        elif not fields and not error:
            yield Row(number, ("",) * width)
        else:
            error = error or _describe_width(fields, layout.columns, layout.delimiter)
            yield Row(number, (*fields, *[""] * width)[:width], f"Row {number} (line {line}) {error}")


def _describe_width(fields: Sequence[str], columns: Sequence[str], delimiter: str) -> str:
    fewer = len(fields) < len(columns)
    place = f"column {columns[len(fields)]!r} is missing" if fewer else f"{fields[len(columns)][:40]!r} is one too many"
    return (
        f"has {_fields(len(fields))} and the table {_fields(len(columns))}, split at {delimiter!r}, so that {place}: "
        f"put quotes around cells that contain {delimiter!r}, or choose another delimiter."
    )


def _fields(number: int) -> str:
    return f"{number} field" if number == 1 else f"{number} fields"


def is_json_lines(path: Path, is_gzip: bool, encoding: str, name: str) -> bool:
    """Whether the first line that is not blank is a JSON object; under a name that says so, any of the first lines."""
    found = (line.strip() for block in read_blocks(path, is_gzip, encoding) for line in block if line.strip())
    lines = list(islice(found, SNIFFED_ROWS))
    if not name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json")):
        return bool(lines) and lines[0].startswith("{") and not _parse_object(lines[0])[1]
    if lines and lines[0].startswith("[") and (len(lines) == 1 or not lines[0].endswith("]")):
        raise TableError(f"{name!r} is a JSON array: expected JSON Lines, which has one object per line.")
    return any(line.startswith("{") for line in lines)


def scan_json_lines(path: Path, name: str, encoding: str, is_gzip: bool) -> tuple[Layout, Iterator[Row]]:
    seen: dict[str, set[str]] = {}
    problem = ""
    for number, line, record, error in _read_objects(path, encoding, is_gzip):
        if error and not problem:
            problem = f" Row {number} (line {line}) {error}"
        if record.keys() <= seen.keys() or len(record.keys() | seen.keys()) <= MAX_COLUMNS:
            for key, value in record.items():
                seen.setdefault(key, set()).add(type_of(value))
    if not seen:
        raise TableError(f"There is no key in any row of {name!r}: expected one JSON object per line.{problem}")
    types = tuple(map(merge_types, seen.values()))
    layout = Layout("jsonl", name_columns(tuple(seen)), tuple(seen), encoding, is_gzip=is_gzip, types=types)
    return layout, read_json_lines(path, layout)


def read_json_lines(path: Path, layout: Layout) -> Iterator[Row]:
    keys = layout.header
    known = set(keys)
    for number, line, record, error in _read_objects(path, layout.encoding, layout.is_gzip):
        if not error and not record.keys() <= known:
            error = f"brings the table to more than {MAX_COLUMNS:,} different keys, the most that are read."
        if error:
            yield Row(number, (MISSING,) * len(keys), f"Row {number} (line {line}) {error}")
        else:
            yield Row(number, tuple([record.get(key, MISSING) for key in keys]))


def _read_objects(path: Path, encoding: str, is_gzip: bool) -> Iterator[tuple[int, int, dict[str, Any], str]]:
    """Each line that is not blank: its number as a row and as a line, its object, and why there is none or ``""``."""
    number = line = 0
    for block in read_blocks(path, is_gzip, encoding):
        for text in block:
            line += 1
            if text.strip():
                number += 1
                yield number, line, *_parse_object(text)


def _parse_object(line: str) -> tuple[dict[str, Any], str]:
    """The JSON object in a line and ``""``, or no keys and why there is none."""
    try:
        record = PARSE(line)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        return {}, f'is no JSON ({reason}): expected one object per line, such as {{"text": "Hello"}}.'
    if not isinstance(record, dict):
        found = "null" if record is None else f"a {type(record).__name__}"
        return {}, f'holds {found}: expected one JSON object per line, such as {{"text": "Hello"}}.'
    if len(line) > MAX_CELL_CHARACTERS:  # else no cell can be too long
        for key, cell in record.items():
            if isinstance(cell, str) and len(cell) > MAX_CELL_CHARACTERS:
                return {}, _describe_length(key, cell)
    return record, ""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON value")


def _parse_float(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"{number[:40]} is too large a number")
    return value


# Python's own reading of NaN and 1e999 could not be written as JSON again.
PARSE = json.JSONDecoder(parse_constant=_refuse, parse_float=_parse_float).decode


def _describe_length(column: str, cell: str | bytes) -> str:
    return f"has {len(cell):,} characters in column {column!r}: expected at most {MAX_CELL_CHARACTERS:,}."


def scan_parquet(path: Path, name: str) -> tuple[Layout, Iterator[Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged_parquet(name, error) from error
    if not schema.names:
        raise nothing_in(name)
    check_width(len(schema.names), name)
    types = tuple(base64.b64encode(pyarrow.schema([field]).serialize()).decode("ascii") for field in schema)
    layout = Layout("parquet", name_columns(schema.names), tuple(schema.names), types=types)
    return layout, read_parquet(path, layout)


def _damaged_parquet(name: str, error: Exception) -> TableError:
    return TableError(f"{name!r} is damaged or no Parquet file that can be read here: {error}. Write it again.")


def read_parquet(path: Path, layout: Layout, start: int = 0) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    size = 0
    try:
        with parquet.ParquetFile(path) as source:
            number, groups = 0, list(range(source.num_row_groups))
            while groups and number + (rows := source.metadata.row_group(groups[0]).num_rows) <= start:
                number += rows
                del groups[0]
            for batch in source.iter_batches(BATCH_ROWS, row_groups=groups, use_threads=False):
                size += max(batch.nbytes, batch.num_rows)
                if size > MAX_FILE_BYTES:
                    raise TableError(
                        f"{path.name!r} holds more than {MAX_FILE_BYTES:,} bytes: split it into smaller files."
                    )
                for row in _read_batch(batch, number, layout.columns):
                    if row.number > start:
                        yield row
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged_parquet(path.name, error) from error


def _read_batch(batch: Any, number: int, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a batch, the first after row ``number``; what Python has no value for is a row's error."""
    import pyarrow

    failures = (pyarrow.ArrowException, ValueError, OverflowError)
    try:
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        if batch.nbytes <= MAX_CELL_CHARACTERS:  # else a cell may be too long
            yield from map(Row, range(number + 1, number + 1 + batch.num_rows), rows)
            return
    except failures:  # one by one, to tell which
        pass
    for index in range(batch.num_rows):
        number += 1
        cells: list[Any] = []
        problem = ""
        for name, column in zip(columns, batch.columns, strict=True):
            try:
                cell = column[index].as_py()
            except failures as error:
                cell, problem = None, problem or f"has a value in column {name!r} that cannot be read: {error}"
            if isinstance(cell, (str, bytes)) and len(cell) > MAX_CELL_CHARACTERS:
                problem, cell = problem or _describe_length(name, cell), None
            cells.append(cell)
        yield Row(number, tuple(cells), f"Row {number} {problem}" if problem else "")


def scan_excel(path: Path, name: str, has_header: bool | None) -> tuple[Layout, Iterator[Row]]:
    rows = (cells for _, cells, _ in _read_sheet(path, name) if cells)
    first = next(rows, ())
    if not first:
        raise nothing_in(name)
    check_width(len(first), name)
    sample = [[cell_text(cell) for cell in first]]
    seen: list[set[str]] = [set() for _ in first]
    for cells in rows:
        if len(cells) <= MAX_COLUMNS:
            seen += [set() for _ in range(len(cells) - len(seen))]
            for kinds, cell in zip(seen, cells, strict=False):
                kinds.add(type_of(cell))
        if len(sample) < SNIFFED_ROWS:
            sample.append([cell_text(cell) for cell in cells])
    if has_header is None:
        has_header = is_header(sample)
    header = [""] * len(seen)
    if has_header:
        header[: len(first)] = sample[0]
    else:
        for kinds, cell in zip(seen, first, strict=False):
            kinds.add(type_of(cell))
    layout = Layout(
        "excel", name_columns(header), tuple(header) if has_header else (), has_header=has_header,
        types=tuple(map(merge_types, seen)),
    )  # fmt: skip
    return layout, read_excel(path, layout)


def read_excel(path: Path, layout: Layout) -> Iterator[Row]:
    width = len(layout.columns)
    for number, line, cells, error in number_rows(_read_sheet(path, path.name), layout.has_header):
        if not error and len(cells) > width:
            error = f"has {_fields(len(cells))} and the table {_fields(width)}: delete what stands at its right."
        row = (*cells, *[None] * (width - len(cells)))[:width]
        for column, cell in zip(layout.columns, row, strict=True):
            if isinstance(cell, str) and len(cell) > MAX_CELL_CHARACTERS:
                error = error or _describe_length(column, cell)
                row = tuple(None if other is cell else other for other in row)
        yield Row(number, row, f"Row {number} (line {line}) {error}" if error else "")


def _read_sheet(path: Path, name: str) -> Iterator[tuple[int, tuple[Any, ...], str]]:
    """Each row of the first sheet: its number there, its cells up to the last filled one, and no error."""
    import openpyxl

    _check_workbook(path, name)
    try:
        with path.open("rb") as source:  # by its path, openpyxl would judge it by its name
            book = openpyxl.load_workbook(source, read_only=True, data_only=True, keep_links=False)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # what a file says of its size may be wrong
            for line, cells in enumerate(sheet.iter_rows(values_only=True), 1):
                if line > MAX_SHEET_ROWS:
                    raise TableError(f"{name!r} has more than {MAX_SHEET_ROWS:,} rows, the most that a sheet can have.")
                end = len(cells)
                while end and cells[end - 1] is None:
                    end -= 1
                yield line, tuple(cells[:end]), ""
    except (TableError, OSError):
        raise
    except Exception as error:  # damage leads openpyxl into errors of any kind
        LOG.info("Cannot read %s", path, exc_info=True)
        raise TableError(
            f"{name!r} is damaged or no Excel workbook that can be read here ({error}): save it again as .xlsx or CSV."
        ) from error


def _check_workbook(path: Path, name: str) -> None:
    """Nothing, or ``TableError`` if a zip archive is no workbook, or one that would fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry.file_size for entry in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise TableError(f"{name!r} is damaged or not whole ({error}): fetch or save it again.") from error
    if "xl/workbook.xml" not in entries:
        raise TableError(f"{name!r} is a zip archive and no Excel workbook. Unpack it first.")
    shared = entries.get("xl/sharedStrings.xml", 0)
    if sum(entries.values()) > MAX_FILE_BYTES or shared > MAX_SHARED_STRINGS_BYTES:
        raise TableError(f"{name!r} is too large a workbook: save its first sheet as CSV.")
