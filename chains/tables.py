"""Files of texts in, row by row: CSV, JSON Lines, Parquet and Excel → ``Table`` → ``Row`` after ``Row``.

A file is read in a stream, so that its size costs time and not memory (but for Excel's table of shared strings).
Nothing is guessed about cells: those of CSV are text as they stand, columns and rows keep their order. A row that
cannot be read is a ``Row`` that says why, and costs the others nothing.
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from chains import readers
from chains.errors import TableError
from chains.rows import (
    MAX_COLUMNS,
    MISSING,
    SNIFFED_ROWS,
    TEXT_COLUMNS,
    Kind,
    Layout,
    Row,
    cell_text,
    nothing_in,
    simplify,
)
from chains.textfiles import (
    DELIMITERS,
    HEAD_BYTES,
    MAX_CELL_CHARACTERS,
    MAX_FILE_BYTES,
    find_encoding,
    open_bytes,
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

KEPT_PROBLEMS = 5
# What people upload by mistake, by its first bytes.
STRANGERS = {
    b"%PDF-": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\xd0\xcf\x11\xe0": "an Excel workbook of the old kind (.xls) or one with a password",
}
EXPECTED = "Expected CSV, JSON Lines, Parquet or Excel (.xlsx)"


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
    does not (see ``rows.is_header``). Repeated names become ``text.1``, missing ones ``column 3``.
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
            layout, rows = readers.scan_parquet(path, name)
        elif kind == "excel":
            layout, rows = readers.scan_excel(path, name, has_header)
        else:
            encoding = find_encoding(path, is_gzip, name, encoding)
            if readers.is_json_lines(path, is_gzip, encoding, name):
                layout, rows = readers.scan_json_lines(path, name, encoding, is_gzip)
            else:
                layout, rows = readers.scan_csv(path, name, encoding, is_gzip, delimiter, has_header)
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
            yield from readers.read_parquet(path, layout, start)
        else:
            read = {"csv": readers.read_csv, "jsonl": readers.read_json_lines, "excel": readers.read_excel}[layout.kind]
            yield from islice(read(path, layout), start, None)


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
    by_name = {simplify(column): column for column in reversed(table.columns)}
    for name in TEXT_COLUMNS:
        if name in by_name:
            return by_name[name]
    lengths = [0] * len(table.columns)
    for row in islice(table.rows(), SNIFFED_ROWS):
        for column in range(len(lengths)):
            lengths[column] += len(text_of(row, column)[0])
    return table.columns[lengths.index(max(lengths))]


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
        raise nothing_in(name)
    # A table may have a column of that name; a Parquet file has NUL bytes.
    is_parquet = head.startswith(b"PAR1") and (b"\0" in head or name.endswith(".parquet"))
    is_zip = head.startswith((b"PK\x03\x04", b"PK\x05\x06"))
    if is_gzip and (is_parquet or is_zip):
        raise TableError(f"{name!r} is a gzipped {'Parquet file' if is_parquet else 'zip archive'}: unpack it first.")
    for start, what in STRANGERS.items():
        if head.startswith(start):
            raise TableError(f"{name!r} is {what}. {EXPECTED}: save the table in one of these.")
    return "parquet" if is_parquet else "excel" if is_zip else "csv", is_gzip
