"""Text files → lines → CSV records, in a stream: packing, encoding, delimiter, and quotes that break.

Knows nothing of columns and rows. Every function reads the file again from its beginning and holds a block of it.
"""

import codecs
import csv
import gzip
import io
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from chains.errors import TableError

__all__ = [
    "DELIMITERS",
    "HEAD_BYTES",
    "MAX_CELL_CHARACTERS",
    "MAX_FILE_BYTES",
    "find_delimiter",
    "find_encoding",
    "open_bytes",
    "read_blocks",
    "read_records",
]

DELIMITERS = (",", ";", "\t", "|")
# Of the unpacked file: what a packed one may swell to.
MAX_FILE_BYTES = 4_000_000_000
MAX_CELL_CHARACTERS = 1_000_000
HEAD_BYTES = 1 << 16
BLOCK = 1 << 18
# No memory would do for a file that is one endless line.
MAX_LINE_CHARACTERS = 64 * BLOCK
MAX_RECORD_BLOCKS = 64
# After a broken quote its following lines are read once more: ten seconds of work, where a file may ask for days.
MAX_REREAD_CHARACTERS = 1_000_000_000
SNIFFED_RECORDS = 200
NO_DELIMITER = "\udfff"  # no decoded text holds a lone surrogate
HOW_TO_QUOTE = (
    'a cell that begins with a quote must end with one, and quotes inside it are doubled, as in "She said ""hello""".'
)


def open_bytes(path: Path, is_gzip: bool) -> BinaryIO:
    """The file, unpacked, to be read from its first byte."""
    return cast(BinaryIO, gzip.open(path, "rb")) if is_gzip else path.open("rb")


def find_encoding(path: Path, is_gzip: bool, name: str, encoding: str | None = None) -> str:
    """The encoding that fits every byte of the file, by which Python knows it.

    A byte order mark decides; else NUL in every other byte says UTF-16; else it is UTF-8 if the whole file is, and
    Windows-1252 if not. A given ``encoding`` is only checked.

    Raises:
        TableError: none fits, Python does not know the given one, the file is no text or larger than MAX_FILE_BYTES.
    """
    with open_bytes(path, is_gzip) as source:
        head = source.read(HEAD_BYTES)
    tried = [encoding] if encoding is not None else _candidates(head)
    misfit = None
    for candidate in tried:
        if candidate == "cp1252" and encoding is None and b"\0" in head:
            raise TableError(
                f"{name!r} is no text: it is not UTF-8, and there are NUL bytes in it. Expected CSV, JSON Lines, "
                "Parquet or Excel (.xlsx); if it is a CSV file, save it as UTF-8 or choose its encoding."
            )
        misfit = _find_misfit(path, is_gzip, name, candidate)
        if misfit is None:
            return candidate
    if encoding is None:
        raise TableError(
            f"Cannot read the file of {name!r} as {' or '.join(tried)}: save it as UTF-8, or choose its encoding."
        )
    raise TableError(
        f"Cannot read the file of {name!r} as {encoding}: {misfit}. "
        "Choose another encoding, or none to have it detected."
    )


def _candidates(head: bytes) -> list[str]:
    """The encodings to try, in order, for a file that begins so."""
    if head.startswith(codecs.BOM_UTF8):
        return ["utf-8-sig"]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ["utf-16"]
    # The letters of European languages have one NUL byte each in UTF-16, always on the same side.
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > 0.35 * len(head) and min(even, odd) < 0.02 * len(head):
        return ["utf-16-be" if even > odd else "utf-16-le", "utf-8"]
    return ["utf-8", "cp1252"]


def _find_misfit(path: Path, is_gzip: bool, name: str, encoding: str) -> str | None:
    """Where and why the file is not in this encoding, or ``None`` if it is."""
    try:
        # TextIOWrapper refuses codecs that are for other things than text, such as base64.
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        decoder = codecs.getincrementaldecoder(encoding)()
    except (LookupError, ValueError) as error:
        raise TableError(f"Python knows no encoding {encoding!r}: try utf-8, utf-16, cp1252 or latin-1.") from error
    size = 0
    with open_bytes(path, is_gzip) as source:
        try:
            while chunk := source.read(1 << 20):
                size += len(chunk)
                if size > MAX_FILE_BYTES:
                    raise TableError(f"{name!r} holds more than {MAX_FILE_BYTES:,} bytes: split it into smaller files.")
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:  # its object is the chunk with what was left of the one before
            return f"byte {size - len(error.object) + error.start} does not fit ({error.reason})"
        except UnicodeError as error:
            return str(error)
    return None


def read_blocks(path: Path, is_gzip: bool, encoding: str) -> Iterator[list[str]]:
    """All lines with their ends (``\\n``, ``\\r\\n`` or ``\\r``), many at once, without a byte order mark."""
    with io.TextIOWrapper(open_bytes(path, is_gzip), encoding=encoding, newline="\n") as source:
        line = 1
        rest = source.read(BLOCK).removeprefix("\ufeff")
        while chunk := source.read(BLOCK):
            text = rest + chunk
            # A carriage return at the very end may be half of a line end.
            end = max(text.rfind("\n"), text.rfind("\r", 0, -1)) + 1
            rest = text[end:]
            if len(rest) > MAX_LINE_CHARACTERS:
                raise TableError(
                    f"Line {line + len(_split_lines(text[:end]))} is longer than {MAX_LINE_CHARACTERS:,} "
                    "characters: expected a table with one text per row."
                )
            if end:
                lines = _split_lines(text[:end])
                line += len(lines)
                yield lines
        if rest:
            yield _split_lines(rest)


def _split_lines(text: str) -> list[str]:
    # Not splitlines, which also splits at U+2028 and other characters that stand inside cells.
    return io.StringIO(text, newline="").readlines()


def read_records(blocks: Iterator[list[str]], delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """Each CSV record (RFC 4180): the number of its first line, its fields, and why it is broken or ``""``.

    A blank line has no fields. A ``delimiter`` of ``""`` splits nothing. A record with a broken quote is its first
    line alone, so that no quote swallows what follows: the next line begins a new record.

    Raises:
        TableError: broken quotes are so many that to read on would take too long.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)
    delimiter = delimiter or NO_DELIMITER
    lines: list[str] = []  # read, but not yet part of a record; the first has the number ``first``
    first, wanted, reread, is_end = 1, 1, 0, False
    while not is_end:
        for _ in range(wanted):
            block = next(blocks, None)
            is_end = block is None
            lines += block or []
        done = 0
        while done < len(lines):
            begin = done
            # A map starts in the middle of a long list without a copy of it.
            reader = csv.reader(map(lines.__getitem__, range(begin, len(lines))), delimiter=delimiter, strict=True)
            try:
                for fields in reader:
                    yield first + done, fields, ""
                    done = begin + reader.line_num
            except csv.Error as error:
                end = begin + reader.line_num
                if end == len(lines) and not is_end and wanted < MAX_RECORD_BLOCKS:
                    break  # the quote may close in the next block
                fields = _read_leniently(lines[done], delimiter)
                yield first + done, fields, _describe(error, len(fields), end - done)
                reread += sum(map(len, lines[done + 1 : end]))
                if reread > MAX_REREAD_CHARACTERS:
                    raise TableError(
                        f"Too many quotes open and never close, the last one in line {first + done}: {HOW_TO_QUOTE} "
                        "Correct the file, or save it again from the program that it comes from."
                    ) from error
                done += 1
        # Twice as many blocks for a record that goes on, so that all its readings together are no more than two.
        wanted = 1 if done else 2 * wanted
        del lines[:done]
        first += done


def _read_leniently(line: str, delimiter: str) -> list[str]:
    """What can be told of a line with a broken quote; nothing if it is too long."""
    with suppress(csv.Error):
        return next(csv.reader([line.rstrip("\r\n")], delimiter=delimiter), [])
    return []


def _describe(error: csv.Error, fields: int, lines: int) -> str:
    if "field limit" in str(error):
        return f"has a cell of more than {MAX_CELL_CHARACTERS:,} characters, or a quote that never closes"
    if lines > 1 or "end of data" in str(error):
        return f"opens a quote in field {fields} that never closes: {HOW_TO_QUOTE}"
    words = str(error).replace(f"'{NO_DELIMITER}'", "the end of the line")
    return f"has a broken quote ({words}): {HOW_TO_QUOTE}"


def find_delimiter(path: Path, is_gzip: bool, encoding: str) -> str:
    """The delimiter that splits the header and the most of the first records into equally many fields, or ``""``."""
    best, best_score = "", (0.0, 0)
    for delimiter in DELIMITERS:
        records = read_records(read_blocks(path, is_gzip, encoding), delimiter)
        counts = [(len(fields), not error) for _, fields, error in islice(records, SNIFFED_RECORDS) if fields or error]
        if counts and (expected := counts[0][0]) > 1:
            score = (counts.count((expected, True)) / len(counts), expected)
            best, best_score = max((best, best_score), (delimiter, score), key=lambda candidate: candidate[1])
    return best
