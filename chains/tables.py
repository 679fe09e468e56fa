"""Files of texts in, row by row: CSV, JSON Lines, Parquet and Excel → ``Table`` → ``Row`` after ``Row``.

A file is read in a stream, so that its size costs time and not memory (but for Excel's table of shared strings).
Nothing is guessed about cells: those of CSV are text as they stand, columns and rows keep their order. A row that
cannot be read is a ``Row`` that says why, and costs the others nothing.
"""

import base64
import gzip
import hashlib
import json
import logging
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from chains.errors import TableError
from chains.textfiles import (
    DELIMITERS,
    HEAD_BYTES,
    MAX_CELL_CHARACTERS,
    MAX_FILE_BYTES,
    find_delimiter,
    find_encoding,
    open_bytes,
    read_blocks,
    read_records,
)

__all__ = [
    "DELIMITERS",
    "MAX_CELL_CHARACTERS",
    "MAX_COLUMNS",
    "MAX_FILE_BYTES",
    "MISSING",
    "Kind",
    "Layout",
    "Row",
    "Table",
    "cell_text",
    "guess_text_column",
    "read_rows",
    "scan",
    "text_of",
]

LOG = logging.getLogger(__name__)
MAX_COLUMNS = 1_000
# What openpyxl holds in memory at once; twice what a sheet full of long texts has.
MAX_SHARED_STRINGS_BYTES = 500_000_000
MAX_SHEET_ROWS = 1_048_576
SNIFFED_ROWS = 200
BATCH_ROWS = 1_024
KEPT_PROBLEMS = 5
# Best first; compared without case and outer spaces.
TEXT_COLUMNS = (
    *("text", "texto", "texte", "message", "mensaje", "comment", "comments", "comentario", "commentaire"),
    *("review", "content", "contenido", "contenu", "sentence", "frase", "phrase", "tweet", "body", "description"),
)
MAX_NAME_CHARACTERS = 120  # more than that in the first row is a text, not a name
# What people upload by mistake, by its first bytes.
STRANGERS = {
    b"%PDF-": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old kind (.xls) or one with a password",
}
EXPECTED = "Expected CSV, JSON Lines, Parquet or Excel (.xlsx)"
Kind = Literal["csv", "jsonl", "parquet", "excel"]


class Missing(Enum):
    """The type of ``MISSING``."""

    MISSING = "missing"


# The cell of a JSON Lines row that does not have the column's key, which is not the same as null.
MISSING: Final = Missing.MISSING


# A tuple and not a dataclass: a million of them are made twice as fast.
class Row(NamedTuple):
    """One data row. ``number`` counts from 1, without the header, unreadable rows too.

    ``cells`` are one per column: ``str`` of CSV; JSON values or ``MISSING`` of JSON Lines; Python values of Parquet and
    Excel. ``error`` says in words why the row could not be read, ``""`` if it was; its cells are then those that could
    be told, padded with ``""`` (CSV), ``MISSING`` (JSON Lines) or ``None``.
    """

    number: int
    cells: tuple[Any, ...]
    error: str = ""


@dataclass(frozen=True)
class Layout:
    """How a file is read; ``Layout(**json.loads(json.dumps(asdict(layout))))`` is the same layout.

    ``columns`` are unique and not blank; ``header`` are the names as they stand in the file, ``""`` where there is
    none, and ``()`` if the file names no columns. ``encoding`` is of CSV and JSON Lines; ``delimiter`` of CSV, ``""``
    when every line is one cell. ``types`` are the columns' for writers: ``text``, ``integer`` (64 bits), ``number``,
    ``boolean``, ``datetime``, ``date``, ``json`` (anything), and for Parquet a serialised Arrow schema of the column.
    """

    kind: Kind
    columns: tuple[str, ...]
    header: tuple[str, ...]
    encoding: str = ""
    delimiter: str = ""
    has_header: bool = True
    is_gzip: bool = False
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("columns", "header", "types"):  # JSON has only lists
            object.__setattr__(self, field, tuple(getattr(self, field)))


@dataclass(frozen=True)
class Table:
    """A file that was read once. ``total`` counts its data rows, ``unreadable`` those of them with an error.

    ``problems`` are the first few rows' errors; ``sha256`` is of the file's bytes, in hexadecimal.
    """

    path: Path
    name: str
    layout: Layout
    total: int
    unreadable: int
    problems: tuple[str, ...]
    sha256: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, unique and not blank."""
        return self.layout.columns

    def rows(self, start: int = 0) -> Iterator[Row]:
        """The rows after the first ``start``, in order, from the file; see ``read_rows``."""
        return read_rows(self.path, self.layout, start)

    def column(self, name: str) -> int:
        """The place of a column, from 0; a column that does not exist raises ``TableError``."""
        if name not in self.columns:
            listed = ", ".join(map(repr, self.columns))
            raise TableError(f"There is no column {name!r} of {self.name!r}: choose one of {listed}.")
        return self.columns.index(name)


def scan(
    path: Path,
    *,
    name: str = "",
    encoding: str | None = None,
    delimiter: str | None = None,
    has_header: bool | None = None,
) -> Table:
    """The table in a file, after all of it was read: what is not given is detected, and rows are counted and checked.

    The first bytes tell the format, the name only what they leave open. CSV and JSON Lines may be gzipped.

    CSV: without ``encoding`` see ``textfiles.find_encoding``; without ``delimiter``, the one of ``, ; tab |`` that
    splits the first row and most others alike, more fields first, and a single column if none does. A blank line is a
    row of empty cells, except at the end. Without ``has_header``, the first row names the columns unless it clearly
    does not (see ``_is_header``). Repeated names become ``text.1``, missing ones ``column 3``.
    JSON Lines: one object per line, blank lines apart; the columns are all keys, in the order of their first row.
    Excel: the first sheet, formulas by their stored result. Parquet: as it stands.

    Raises:
        TableError: the file cannot be read as any of these, is empty, has no rows, or not one row can be read.
    """
    name = name or path.name
    if delimiter is not None and (len(delimiter) > 1 or delimiter in set('"\r\n')):
        raise TableError(f"{delimiter!r} cannot separate fields: choose one of {DELIMITERS}, or '' for one column.")
    with _in_words(name):
        with path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        kind, is_gzip = _find_kind(path, name)
        if kind == "parquet":
            layout, rows = _scan_parquet(path, name)
        elif kind == "excel":
            layout, rows = _scan_excel(path, name, has_header)
        else:
            encoding = find_encoding(path, is_gzip, name, encoding)
            if _is_json_lines(path, is_gzip, encoding, name):
                layout, rows = _scan_json_lines(path, name, encoding, is_gzip)
            else:
                layout, rows = _scan_csv(path, name, encoding, is_gzip, delimiter, has_header)
        total = unreadable = 0
        problems = []
        for _, _, error in rows:
            total += 1
            if error:
                unreadable += 1
                if unreadable <= KEPT_PROBLEMS:
                    problems.append(error)
    if not total:
        raise TableError(f"The file of {name!r} has a header but no rows: expected at least one row below it.")
    if total == unreadable:
        raise TableError(f"No row of {name!r} can be read. {problems[0]}")
    return Table(path, name, layout, total, unreadable, tuple(problems), sha256)


def read_rows(path: Path, layout: Layout, start: int = 0) -> Iterator[Row]:
    """The rows of a file after the first ``start``, in order, read as ``layout`` says; it may end at any row.

    Raises:
        TableError: the file cannot be read any more, or not in this way.
    """
    with _in_words(path.name):
        if layout.kind == "parquet":
            yield from _read_parquet(path, layout, start)
        else:
            read = {"csv": _read_csv, "jsonl": _read_json_lines, "excel": _read_excel}[layout.kind]
            yield from islice(read(path, layout), start, None)


def cell_text(cell: Any) -> str:
    """A cell as text: ``""`` for none, JSON for lists and objects, base64 for bytes, else its ``str``."""
    if isinstance(cell, str):
        return cell
    if cell is None or cell is MISSING:
        return ""
    if isinstance(cell, bytes):
        return base64.b64encode(cell).decode("ascii")
    return json.dumps(cell, ensure_ascii=False, default=cell_text) if isinstance(cell, (list, dict)) else str(cell)


def text_of(row: Row, column: int) -> tuple[str, str]:
    """The text to analyse in a row and ``""``, or ``""`` and why there is none; an empty cell is an empty text."""
    if row.error:
        return "", row.error
    cell = row.cells[column]
    if isinstance(cell, (list, dict, tuple, set, bytes)):
        found = f"a {type(cell).__name__}"
    elif (text := cell_text(cell)).isascii():
        return text, ""
    else:
        try:
            text.encode()
            return text, ""
        except UnicodeEncodeError as error:
            found = f"half a character ({text[error.start]!r}, a lone surrogate)"
    return "", f"Row {row.number} holds {found} where its text should be: expected text, a number or nothing."


def guess_text_column(table: Table) -> str:
    """The column that most likely holds the texts: one with a usual name, else the one with the longest mean text."""
    by_name = {_simplify(column): column for column in reversed(table.columns)}
    for name in TEXT_COLUMNS:
        if name in by_name:
            return by_name[name]
    lengths = [0] * len(table.columns)
    for row in islice(table.rows(), SNIFFED_ROWS):
        for column in range(len(lengths)):
            lengths[column] += len(text_of(row, column)[0])
    return table.columns[lengths.index(max(lengths))]


def _simplify(name: str) -> str:
    return name.strip().casefold()


@contextmanager
def _in_words(name: str) -> Iterator[None]:
    """What goes wrong with a file while it is read, as ``TableError``."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TableError(f"{name!r} is damaged or not whole: {error}. Fetch or pack it again.") from error
    except UnicodeError as error:
        raise TableError(f"{name!r} has changed since it was first read: {error}. Start again.") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise TableError(f"Cannot read {name!r}: {reason}. Give the path of a file that can be read.") from error


def _find_kind(path: Path, name: str) -> tuple[Kind, bool]:
    """What the first bytes of a file say that it is (text counts as CSV), and whether it is gzipped."""
    with path.open("rb") as source:
        head = source.read(HEAD_BYTES)
    is_gzip = head.startswith(b"\x1f\x8b")
    if is_gzip:
        with open_bytes(path, is_gzip) as source:
            head = source.read(HEAD_BYTES)
    if not head:
        raise _nothing_in(name)
    # A table may have a column of that name; a Parquet file has NUL bytes.
    is_parquet = head.startswith(b"PAR1") and (b"\0" in head or name.endswith(".parquet"))
    is_zip = head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    if is_gzip and (is_parquet or is_zip):
        raise TableError(f"{name!r} is a gzipped {'Parquet file' if is_parquet else 'zip archive'}: unpack it first.")
    for start, what in STRANGERS.items():
        if head.startswith(start):
            raise TableError(f"{name!r} is {what}. {EXPECTED}: save the table in one of these.")
    return "parquet" if is_parquet else "excel" if is_zip else "csv", is_gzip


def _nothing_in(name: str) -> TableError:
    return TableError(f"The file of {name!r} is empty: expected a header and at least one row.")


def _name_columns(header: Sequence[str]) -> tuple[str, ...]:
    """The header with repeated and missing names made unique; a name that is unique already never changes."""
    header = [name.encode(errors="replace").decode() for name in header]  # a JSON key may hold half a character
    taken = set(header)
    columns: dict[str, None] = {}
    for number, name in enumerate(header, 1):
        unique = base = name if name.strip() else f"column {number}"
        if base in columns or (base != name and base in taken):
            suffix = 1
            while (unique := f"{base}.{suffix}") in taken:
                suffix += 1
        taken.add(unique)
        columns[unique] = None
    return tuple(columns)


def _check_width(width: int, name: str) -> None:
    if width > MAX_COLUMNS:
        raise TableError(f"{name!r} has {width:,} columns: expected at most {MAX_COLUMNS:,}. Keep those that you need.")


def _is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first of these rows names the columns of the others.

    It does if one of its cells is a usual name for texts. It does not if it has a cell longer than a name, if it holds
    nothing but numbers, or if it comes again below. In doubt it does.
    """
    first = rows[0]
    if any(_simplify(cell) in TEXT_COLUMNS for cell in first):
        return True
    filled = [cell for cell in first if cell.strip()]
    is_numeric = bool(filled) and all(map(_is_number, filled))
    return not (is_numeric or any(len(cell) > MAX_NAME_CHARACTERS for cell in first) or first in rows[1:])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _scan_csv(
    path: Path, name: str, encoding: str, is_gzip: bool, delimiter: str | None, has_header: bool | None
) -> tuple[Layout, Iterator[Row]]:
    if delimiter is None:
        delimiter = find_delimiter(path, is_gzip, encoding)
    records = (record for record in read_records(read_blocks(path, is_gzip, encoding), delimiter) if any(record[1:]))
    first = list(islice(records, SNIFFED_ROWS))
    if not first or (len(first) == 1 and not any(map(str.strip, first[0][1])) and not first[0][2]):
        raise _nothing_in(name)
    line, header, error = first[0]
    if has_header is None:
        has_header = bool(error) or _is_header([fields for _, fields, _ in first])
    if not has_header:
        widths = Counter(len(fields) for _, fields, error in first if not error)
        header = [""] * max(widths, key=lambda width: widths[width], default=1)
    elif error:
        raise TableError(f"The header (line {line}) of {name!r} {error}")
    _check_width(len(header), name)
    columns = _name_columns(header)
    types = ("text",) * len(columns)
    layout = Layout(
        "csv", columns, tuple(header) if has_header else (), encoding, delimiter, has_header, is_gzip, types
    )
    return layout, _read_csv(path, layout)


def _read_csv(path: Path, layout: Layout) -> Iterator[Row]:
    records = read_records(read_blocks(path, layout.is_gzip, layout.encoding), layout.delimiter)
    width = len(layout.columns)
    for number, line, fields, error in _number_rows(records, layout.has_header):
        if len(fields) == width and not error:
            yield Row(number, tuple(fields))
        elif not fields and not error:
            yield Row(number, ("",) * width)
        else:
            error = error or _describe_width(fields, layout.columns, layout.delimiter)
            yield Row(number, (*fields, *[""] * width)[:width], f"Row {number} (line {line}) {error}")


def _number_rows(
    records: Iterable[tuple[int, Sequence[Any], str]], has_header: bool
) -> Iterator[tuple[int, int, Sequence[Any], str]]:
    """The records (line, cells, error) below the header, each with its row number in front.

    Blank records above the header and at the end are left out.
    """
    number = blank = 0  # blank records so far count only if another follows
    is_begun = False
    for line, cells, error in records:
        if not cells and not error:
            blank += is_begun
        elif has_header and not is_begun:
            is_begun = True
        else:
            is_begun = True
            for before in range(blank, 0, -1):
                number += 1
                yield number, line - before, (), ""
            blank = 0
            number += 1
            yield number, line, cells, error


def _describe_width(fields: Sequence[str], columns: Sequence[str], delimiter: str) -> str:
    fewer = len(fields) < len(columns)
    place = f"column {columns[len(fields)]!r} is missing" if fewer else f"{fields[len(columns)][:40]!r} is one too many"
    return (
        f"has {_fields(len(fields))} and the table {_fields(len(columns))}, split at {delimiter!r}, so that {place}: "
        f"put quotes around cells that contain {delimiter!r}, or choose another delimiter."
    )


def _fields(number: int) -> str:
    return f"{number} field" if number == 1 else f"{number} fields"


def _is_json_lines(path: Path, is_gzip: bool, encoding: str, name: str) -> bool:
    """Whether the first line that is not blank is a JSON object; under a name that says so, any of the first lines."""
    found = (line.strip() for block in read_blocks(path, is_gzip, encoding) for line in block if line.strip())
    lines = list(islice(found, SNIFFED_ROWS))
    if not name.lower().removesuffix(".gz").endswith((".jsonl", ".ndjson", ".json")):
        return bool(lines) and lines[0].startswith("{") and not _parse_object(lines[0])[1]
    if lines and lines[0].startswith("[") and (len(lines) == 1 or not lines[0].endswith("]")):
        raise TableError(f"{name!r} is a JSON array: expected JSON Lines, which has one object per line.")
    return any(line.startswith("{") for line in lines)


def _scan_json_lines(path: Path, name: str, encoding: str, is_gzip: bool) -> tuple[Layout, Iterator[Row]]:
    seen: dict[str, set[str]] = {}
    problem = ""
    for number, line, record, error in _read_objects(path, encoding, is_gzip):
        if error and not problem:
            problem = f" Row {number} (line {line}) {error}"
        if len(seen) + sum(key not in seen for key in record) <= MAX_COLUMNS:
            for key, value in record.items():
                seen.setdefault(key, set()).add(_type_of(value))
    if not seen:
        raise TableError(f"There is no key in any row of {name!r}: expected one JSON object per line.{problem}")
    types = tuple(map(_merge_types, seen.values()))
    layout = Layout("jsonl", _name_columns(tuple(seen)), tuple(seen), encoding, is_gzip=is_gzip, types=types)
    return layout, _read_json_lines(path, layout)


def _read_json_lines(path: Path, layout: Layout) -> Iterator[Row]:
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


# In the order in which isinstance must ask: a bool is an int, and a datetime is a date.
TYPES: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (bool, "boolean"),
    (float, "number"),
    (datetime, "datetime"),
    (date, "date"),
)


def _type_of(value: Any) -> str:
    """The type of a cell for writers, ``""`` for an empty one."""
    if value is None:
        return ""
    for type_, name in TYPES:
        if isinstance(value, type_):
            return name
    return "integer" if isinstance(value, int) and -(2**63) <= value < 2**63 else "json"


def _merge_types(types: set[str]) -> str:
    """The type of a column whose cells have these; one without cells is text."""
    types = types - {""}
    if types == {"integer", "number"}:
        return "number"
    return types.pop() if len(types) == 1 else "json" if types else "text"


def _scan_parquet(path: Path, name: str) -> tuple[Layout, Iterator[Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _damaged_parquet(name, error) from error
    if not schema.names:
        raise _nothing_in(name)
    _check_width(len(schema.names), name)
    types = tuple(base64.b64encode(pyarrow.schema([field]).serialize()).decode("ascii") for field in schema)
    layout = Layout("parquet", _name_columns(schema.names), tuple(schema.names), types=types)
    return layout, _read_parquet(path, layout)


def _damaged_parquet(name: str, error: Exception) -> TableError:
    return TableError(f"{name!r} is damaged or no Parquet file that can be read here: {error}. Write it again.")


def _read_parquet(path: Path, layout: Layout, start: int = 0) -> Iterator[Row]:
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


def _scan_excel(path: Path, name: str, has_header: bool | None) -> tuple[Layout, Iterator[Row]]:
    rows = (cells for _, cells, _ in _read_sheet(path, name) if cells)
    first = next(rows, ())
    if not first:
        raise _nothing_in(name)
    _check_width(len(first), name)
    sample = [[cell_text(cell) for cell in first]]
    seen: list[set[str]] = [set() for _ in first]
    for cells in rows:
        if len(cells) <= MAX_COLUMNS:
            seen += [set() for _ in range(len(cells) - len(seen))]
            for kinds, cell in zip(seen, cells, strict=False):
                kinds.add(_type_of(cell))
        if len(sample) < SNIFFED_ROWS:
            sample.append([cell_text(cell) for cell in cells])
    if has_header is None:
        has_header = _is_header(sample)
    header = [""] * len(seen)
    if has_header:
        header[: len(first)] = sample[0]
    else:
        for kinds, cell in zip(seen, first, strict=False):
            kinds.add(_type_of(cell))
    layout = Layout(
        "excel", _name_columns(header), tuple(header) if has_header else (), has_header=has_header,
        types=tuple(map(_merge_types, seen)),
    )  # fmt: skip
    return layout, _read_excel(path, layout)


def _read_excel(path: Path, layout: Layout) -> Iterator[Row]:
    width = len(layout.columns)
    for number, line, cells, error in _number_rows(_read_sheet(path, path.name), layout.has_header):
        if not error and len(cells) > width:
            error = f"has {_fields(len(cells))} and the table {_fields(width)}: delete what stands at its right."
        row = (*cells, *[None] * (width - len(cells)))[:width]
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
        raise TableError(f"{name!r} is a zip archive and no Excel workbook. {EXPECTED}: unpack it first.")
    shared = entries.get("xl/sharedStrings.xml", 0)
    if sum(entries.values()) > MAX_FILE_BYTES or shared > MAX_SHARED_STRINGS_BYTES:
        raise TableError(f"{name!r} is too large a workbook: save its first sheet as CSV.")
