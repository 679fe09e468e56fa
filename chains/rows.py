"""What a row is and how a file is read, whatever its format: ``Row``, ``Layout``, rules for headers and types."""

import base64
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from chains.errors import TableError

__all__ = [
    "MAX_COLUMNS",
    "MISSING",
    "SNIFFED_ROWS",
    "TEXT_COLUMNS",
    "Kind",
    "Layout",
    "Missing",
    "Row",
    "cell_text",
    "check_width",
    "is_header",
    "merge_types",
    "name_columns",
    "nothing_in",
    "number_rows",
    "simplify",
    "type_of",
]

MAX_COLUMNS = 1_000
SNIFFED_ROWS = 200
# Best first; compared without case and outer spaces.
TEXT_COLUMNS = (
    *("text", "texto", "texte", "message", "mensaje", "comment", "comments", "comentario", "commentaire"),
    *("review", "content", "contenido", "contenu", "sentence", "frase", "phrase", "tweet", "body", "description"),
)
MAX_NAME_CHARACTERS = 120  # more than that in the first row is a text, not a name
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


def cell_text(cell: Any) -> str:
    """A cell as text: ``""`` for none, JSON for lists and objects, base64 for bytes, else its ``str``."""
    if isinstance(cell, str):
        return cell
    if cell is None or cell is MISSING:
        return ""
    if isinstance(cell, bytes):
        return base64.b64encode(cell).decode("ascii")
    return json.dumps(cell, ensure_ascii=False, default=cell_text) if isinstance(cell, (list, dict)) else str(cell)


def name_columns(header: Sequence[str]) -> tuple[str, ...]:
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


def check_width(width: int, name: str) -> None:
    """Nothing, or ``TableError`` if the file of that name has too many columns."""
    if width > MAX_COLUMNS:
        raise TableError(f"{name!r} has {width:,} columns: expected at most {MAX_COLUMNS:,}. Keep those that you need.")


def nothing_in(name: str) -> TableError:
    """The error of an empty file."""
    return TableError(f"The file of {name!r} is empty: expected a header and at least one row.")


def is_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first of these rows names the columns of the others.

    It does if one of its cells is a usual name for texts. It does not if it has a cell longer than a name, if it holds
    nothing but numbers, or if it comes again below. In doubt it does.
    """
    first = rows[0]
    if any(simplify(cell) in TEXT_COLUMNS for cell in first):
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


def simplify(name: str) -> str:
    """A column's name as it is compared: without case and outer spaces."""
    return name.strip().casefold()


def number_rows(
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


TYPES = {str: "text", bool: "boolean", float: "number", datetime: "datetime", date: "date", type(None): ""}


def type_of(value: Any) -> str:
    """The type of a cell for writers (see ``Layout``), ``""`` for an empty one."""
    if type(value) is int:
        return "integer" if -(2**63) <= value < 2**63 else "json"
    return TYPES.get(type(value), "json")


def merge_types(types: set[str]) -> str:
    """The type of a column whose cells have these; one without cells is text."""
    types = types - {""}
    if types == {"integer", "number"}:
        return "number"
    return types.pop() if len(types) == 1 else "json" if types else "text"
