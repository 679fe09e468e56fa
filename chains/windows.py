"""A long text → windows that fit the model, cut at sentence ends where possible, offsets kept, nothing left out."""

import re
from collections.abc import Callable

__all__ = ["split_windows"]

SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”»)\]]*\s+|\n+\s*")
SPACE = re.compile(r"\s+")


def split_windows(text: str, count: Callable[[str], int], limit: int) -> list[tuple[int, int]]:
    """The (start, end) of consecutive windows of ``text``, of at most ``limit`` tokens by ``count`` each.

    Together they cover the text from its first to its last non-space character; what lies between two windows is
    white space only. Sentences are packed while they fit; a longer sentence is cut at a space, a longer word
    between characters. White-space-only text gives no window.
    """
    start, end = _strip(text, 0, len(text))
    if start == end:
        return []
    if count(text[start:end]) <= limit:
        return [(start, end)]
    pieces = _cut(text, start, end, SENTENCE_END)
    windows: list[tuple[int, int]] = []
    for piece in pieces:
        if windows and count(text[windows[-1][0] : piece[1]]) <= limit:
            windows[-1] = (windows[-1][0], piece[1])
        else:
            windows += _shorten(text, *piece, count, limit)
    return windows


def _shorten(text: str, start: int, end: int, count: Callable[[str], int], limit: int) -> list[tuple[int, int]]:
    """``text[start:end]`` as windows: whole if it fits, else cut near its middle, at a space if there is one."""
    if end - start <= 1 or count(text[start:end]) <= limit:
        return [(start, end)]
    middle = (start + end) // 2
    spaces = [match.span() for match in SPACE.finditer(text, start, end)]
    left, right = min(spaces, key=lambda span: abs(span[0] - middle), default=(middle, middle))
    return _shorten(text, start, left, count, limit) + _shorten(text, right, end, count, limit)


def _cut(text: str, start: int, end: int, where: re.Pattern[str]) -> list[tuple[int, int]]:
    pieces = []
    for match in where.finditer(text, start, end):
        # Closing quotes and brackets belong to the sentence; only the white space after them separates.
        stop = start + len(text[start : match.end()].rstrip())
        if stop > start:
            pieces.append((start, stop))
        start = match.end()
    if start < end:
        pieces.append((start, end))
    return pieces


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    stripped = text[start:end].strip()
    if not stripped:
        return start, start
    first = text.index(stripped[0], start)
    return first, first + len(stripped)
