"""Tables of texts in and out: CSV → ``Table`` → the same rows with result columns → CSV or JSON Lines.

Nothing is guessed about cells: every input cell is text, an empty one is ``""``, columns and rows keep their order.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from chains.errors import TableError
from chains.schema import Analysis

__all__ = [
    "DELIMITERS",
    "RESULT_COLUMNS",
    "Table",
    "add_records",
    "add_results",
    "guess_text_column",
    "name_result_columns",
    "read_table",
    "to_csv",
    "to_jsonl",
    "to_record",
]

DELIMITERS = (",", ";", "\t", "|")
SNIFFED_ROWS = 200
# Best first; compared without case and outer spaces.
TEXT_COLUMNS = (
    *("text", "texto", "texte", "message", "mensaje", "comment", "comments", "comentario", "commentaire"),
    *("review", "content", "contenido", "contenu", "sentence", "frase", "phrase", "tweet", "body", "description"),
)
RESULT_COLUMNS = ("language", "language_probability", "entities", "locations", "people", "organizations", "error")
COUNTED_TYPES = {"locations": "location", "people": "person", "organizations": "organization"}
# A spreadsheet runs a cell that begins so as a formula (https://owasp.org/www-community/attacks/CSV_Injection).
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Table:
    """A table of texts as it was read: ``frame`` holds only ``str`` cells.

    ``columns`` are the frame's names, unique and not blank; ``header`` are the names as they stand in the file.
    ``delimiter`` is ``""`` when the header has none, so that every line is one cell.
    """

    columns: tuple[str, ...]
    frame: pd.DataFrame
    encoding: str
    delimiter: str
    header: tuple[str, ...]
    name: str = ""

    def texts(self, column: str) -> list[str]:
        """The cells of ``column``, in row order; a column that does not exist raises ``TableError``."""
        if column not in self.columns:
            listed = ", ".join(map(repr, self.columns))
            raise TableError(f"There is no column {column!r}{_of(self.name)}: choose one of {listed}.")
        return [str(cell) for cell in self.frame[column]]


def read_table(
    source: bytes | Path, *, encoding: str | None = None, delimiter: str | None = None, name: str = ""
) -> Table:
    """The table in a CSV file whose first row names the columns.

    Without ``encoding``: a byte order mark decides, else UTF-8 if the whole file is, else Windows-1252.
    Without ``delimiter``: the one of ``, ; tab |`` that splits the header and most rows alike, more fields first; a
    header that none of them splits is a single column. Quotes follow RFC 4180. A blank line is a row of empty cells,
    except at the end of the file. Repeated names become ``text.1``, missing ones ``column 3``.

    Raises:
        TableError: the file is empty or has no rows, cannot be decoded, holds NUL characters or a broken quote, or a
            row has more or fewer fields than the header; the message names the row.
    """
    if isinstance(source, Path):
        name = name or source.name
        try:
            source = source.read_bytes()
        except OSError as error:
            raise TableError(f"Cannot read {str(source)!r}: {error.strerror}. Give the path of a CSV file.") from error
    text, encoding = _decode(source, encoding, name)
    if not text.strip():
        raise TableError(f"The file{_of(name)} is empty: expected a header and at least one row.")
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise TableError(
            f"There is a NUL character in line {line}{_of(name)}, read as {encoding}: this is no CSV file, "
            "or it has another encoding. Save it as UTF-8, or choose its encoding (perhaps utf-16)."
        )
    if delimiter is None:
        delimiter = find_delimiter(text)
    elif len(delimiter) > 1 or delimiter in set('"\r\n'):
        raise TableError(f"{delimiter!r} cannot separate fields: choose one of {DELIMITERS}, or '' for one column.")
    rows = _read_rows(text, delimiter, name)
    header = next(rows)[1]
    cells = _check_rows(header, rows, delimiter, name)
    if not cells:
        raise TableError(f"The file{_of(name)} has a header but no rows: expected at least one row below it.")
    columns = _name_columns(header)
    frame = pd.DataFrame(dict(zip(columns, zip(*cells, strict=True), strict=True)), dtype="str")
    return Table(columns, frame, encoding, delimiter, tuple(header), name)


def _of(name: str) -> str:
    return f" of {name!r}" if name else ""


def _decode(source: bytes, encoding: str | None, name: str) -> tuple[str, str]:
    """The whole source as text, and the encoding that was used."""
    if encoding is not None:
        try:
            return source.decode(encoding).removeprefix("\ufeff"), encoding
        except LookupError as error:
            raise TableError(f"Python knows no encoding {encoding!r}: try utf-8, utf-16, cp1252 or latin-1.") from error
        except UnicodeDecodeError as error:
            raise TableError(
                f"Cannot read the file{_of(name)} as {encoding}: byte {error.start} does not fit ({error.reason}). "
                "Choose another encoding, or none to have it detected."
            ) from error
    if source.startswith(b"\xef\xbb\xbf"):
        tried = ["utf-8-sig"]
    elif source.startswith((b"\xff\xfe", b"\xfe\xff")):
        tried = ["utf-16"]
    else:
        tried = ["utf-8", "cp1252"]
    for candidate in tried:
        try:
            return source.decode(candidate), candidate
        except UnicodeDecodeError:
            continue
    raise TableError(
        f"Cannot read the file{_of(name)} as {' or '.join(tried)}: save it as UTF-8, or choose its encoding."
    )


def find_delimiter(text: str) -> str:
    """The delimiter that splits the header and the most of the first rows into equally many fields, or ``""``."""
    best, best_score = "", (False, 0.0, 0)
    for delimiter in DELIMITERS:
        counts: list[int] = []
        is_broken = False
        try:
            for _, row in islice(_read_rows(text, delimiter, ""), SNIFFED_ROWS):
                counts += [len(row)] if row else []
        except TableError:  # a quote that perhaps another delimiter closes
            is_broken = True
        if counts and counts[0] > 1:
            score = (not is_broken, counts.count(counts[0]) / len(counts), counts[0])
            best, best_score = max((best, best_score), (delimiter, score), key=lambda candidate: candidate[1])
    return best


def _read_rows(text: str, delimiter: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the number of its last line; blank lines at the top are skipped, later ones give no fields."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 131,072 characters, is less than a long text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or _absent(text), strict=True)
    is_header_read = False
    try:
        for row in reader:
            is_header_read = is_header_read or bool(row)
            if is_header_read:
                yield reader.line_num, row
    except csv.Error as error:
        raise TableError(
            f"There is a broken quote near line {reader.line_num}{_of(name)} ({error}): a cell that begins with a "
            'quote must end with one, and quotes inside it are doubled, as in "She said ""hello""".'
        ) from error


def _absent(text: str) -> str:
    """A character that ``text`` does not hold: as the delimiter of a single column it splits nothing."""
    return next(char for char in map(chr, range(0xE000, 0x10FFFF)) if char not in text)


def _check_rows(
    header: list[str], rows: Iterable[tuple[int, list[str]]], delimiter: str, name: str
) -> list[Sequence[str]]:
    """The rows below the header, each as long as the header."""
    empty = [""] * len(header)
    cells: list[Sequence[str]] = []
    blank = 0  # blank lines so far that count only if a row follows
    for line, row in rows:
        if not row:
            blank += 1
            continue
        cells += [empty] * blank
        blank = 0
        if len(row) != len(header):
            raise TableError(
                f"Row {len(cells) + 1} (line {line}){_of(name)} has {_fields(len(row))} and the header "
                f"{_fields(len(header))}, split at {delimiter!r}: put quotes around cells that contain {delimiter!r}, "
                "or choose another delimiter."
            )
        cells.append(row)
    return cells


def _fields(number: int) -> str:
    return f"{number} field" if number == 1 else f"{number} fields"


def _name_columns(header: Sequence[str]) -> tuple[str, ...]:
    """The header with repeated and missing names made unique; a name that is unique already never changes."""
    taken = set(header)
    columns: list[str] = []
    for number, name in enumerate(header, 1):
        unique = base = name if name.strip() else f"column {number}"
        if base in columns or (base != name and base in taken):
            suffix = 1
            while (unique := f"{base}.{suffix}") in taken:
                suffix += 1
        taken.add(unique)
        columns.append(unique)
    return tuple(columns)


def guess_text_column(table: Table) -> str:
    """The column that most likely holds the texts: one with a usual name, else the one with the longest mean text."""
    by_name = {column.strip().casefold(): column for column in reversed(table.columns)}
    for name in TEXT_COLUMNS:
        if name in by_name:
            return by_name[name]
    return max(table.columns, key=lambda column: table.frame[column].str.len().mean())


def name_result_columns(columns: Iterable[str]) -> dict[str, str]:
    """Each result column's name beside the input ``columns``: ``language``, or if taken ``language (result)``."""
    taken = set(columns)
    names = {}
    for column in RESULT_COLUMNS:
        name, number = column, 1
        while name in taken:
            name = f"{column} (result)" if number == 1 else f"{column} (result {number})"
            number += 1
        names[column] = name
    return names


def to_record(analysis: Analysis) -> dict[str, Any]:
    """One row of results as JSON values, by ``RESULT_COLUMNS``; what is not known is ``None``.

    ``entities`` is a list of ``{"text", "type", "start", "end"}``. A text with an error has nothing but the error.
    """
    record: dict[str, Any] = dict.fromkeys(RESULT_COLUMNS)
    record["error"] = analysis.error or ""
    if analysis.error:
        return record
    if (detection := analysis.detection) is not None:
        record["language"] = detection.language
        if detection.probability is not None:
            record["language_probability"] = round(detection.probability, 6)
    if (recognition := analysis.recognition) is not None:
        record["entities"] = [entity.model_dump() for entity in recognition.entities]
        counts = recognition.counts()
        record |= {column: counts.get(type_, 0) for column, type_ in COUNTED_TYPES.items()}
    return record


def add_results(frame: pd.DataFrame, analyses: Sequence[Analysis]) -> pd.DataFrame:
    """``frame`` with the result columns of ``analyses`` (one per row) at its right; see ``add_records``."""
    return add_records(frame, [to_record(analysis) for analysis in analyses])


def add_records(frame: pd.DataFrame, records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A copy of ``frame`` with the result columns of ``records`` (from ``to_record``, one per row) at its right.

    ``language``, ``entities`` (a JSON list) and ``error`` are text, ``""`` when not known; ``language_probability``
    is ``Float64`` and the counts are ``Int64``, ``<NA>`` when not known. No input column is changed or replaced.
    """
    if len(frame) != len(records):
        raise ValueError(f"{len(records)} results cannot stand beside {len(frame)} rows")
    added = {}
    for column, name in name_result_columns(frame.columns).items():
        cells = [record[column] for record in records]
        if column == "entities":
            cells = ["" if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
        elif column in {"language", "error"}:
            cells = [cell or "" for cell in cells]
        dtype = "Float64" if column == "language_probability" else "Int64" if column in COUNTED_TYPES else "str"
        added[name] = pd.Series(cells, index=frame.index, dtype=dtype)
    return pd.concat([frame, pd.DataFrame(added, index=frame.index)], axis=1)


def to_csv(frame: pd.DataFrame, *, neutralise: bool = True) -> bytes:
    """The frame as CSV in UTF-8 with a byte order mark, which lets spreadsheets read accents; unknown cells are empty.

    ``neutralise`` puts ``'`` before text cells and column names that a spreadsheet would run as formulas; numbers stay.
    """
    if neutralise:
        frame = pd.DataFrame({_neutralise(name): cells.map(_neutralise) for name, cells in frame.items()})
    # A carriage return inside a cell is quoted only because it is part of the line end.
    text: str = frame.to_csv(index=False, lineterminator="\r\n")
    return text.encode("utf-8-sig", errors="replace")


def _neutralise(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA_STARTS) else cell


def to_jsonl(frame: pd.DataFrame) -> bytes:
    """The frame as JSON Lines in UTF-8, one object per row: entities are lists, counts numbers, unknown values null."""
    columns = [str(name) for name in frame.columns]
    # Results stand at the right of the inputs, so the last column of that name is ours.
    ours = next((name for name in reversed(columns) if name == "entities" or name.startswith("entities (result")), None)
    values = {
        name: [
            _read_entities(cell) if name == ours else None if pd.isna(cell) else cell for cell in frame[name].tolist()
        ]
        for name in columns
    }
    lines = [
        json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n"
        for row in zip(*values.values(), strict=True)
    ]
    return "".join(lines).encode("utf-8", errors="replace")


def _read_entities(cell: str) -> Any:
    """The list in a cell of entities; ``None`` for an empty cell, and other text as it is."""
    try:
        return json.loads(cell) if cell else None
    except ValueError:
        return cell
