"""What is wrong with a text file that a CSV reader would not say, or would not see."""

import contextlib
import csv
from pathlib import Path

import numpy as np

from scoring.errors import BatchRequestError

# How such files begin, whatever they are named.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip; a spreadsheet is one, too",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
CHUNK_BYTES = 1 << 22


def check_encoding(file: Path, shown: str) -> None:
    """Refuse what pyarrow would refuse in words that lead nobody to the cause, or take for other text."""
    with file.open("rb") as source:
        start = source.read(CHUNK_BYTES)
    if not start.strip():
        raise BatchRequestError(shown, "it is empty: its first line must name the columns.")
    for mark, kind in COMPRESSED.items():
        if start.startswith(mark):
            raise BatchRequestError(shown, f"it is no text, but compressed ({kind}): unpack it.")
    # In UTF-16, about every second byte of a European text is zero.
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(b"\0") > len(start) // 4:
        raise BatchRequestError(shown, "it is no text in UTF-8 (UTF-16, perhaps, as spreadsheets write it).")
    if b"\0" in start:
        raise _zero_byte(shown, start.count(b"\n", 0, start.index(b"\0")) + 1)


def check_quotes(file: Path, shown: str, delimiter: str) -> None:
    """Refuse a text file whose quotation marks do not surround whole cells.

    pyarrow takes a quote that is never closed as the start of one cell to the end of the file, and all rows in between
    are gone without a word (pyarrow 25).
    """
    may_stand_beside = np.zeros(256, dtype=bool)
    may_stand_beside[list(f'{delimiter}\r\n"'.encode())] = True
    opened, line, opened_at, before = False, 1, 0, b"\n"
    with file.open("rb") as source:
        chunk = source.read(CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf")
        while chunk:
            following = source.read(CHUNK_BYTES)
            if b"\0" in chunk:
                raise _zero_byte(shown, line + chunk.count(b"\n", 0, chunk.index(b"\0")))
            text = np.frombuffer(before + chunk + (following[:1] or b"\n"), np.uint8)
            quotes = np.flatnonzero(text[1:-1] == ord('"')) + 1
            opening = (np.arange(len(quotes)) % 2 == 0) ^ opened
            wrong = quotes[~may_stand_beside[text[np.where(opening, quotes - 1, quotes + 1)]]]
            if len(wrong):
                raise _bad_quote(shown, line + chunk.count(b"\n", 0, int(wrong[0]) - 1))
            if len(quotes):
                opened = bool(opening[-1])
                opened_at = line + chunk.count(b"\n", 0, int(quotes[-1]) - 1)
            line += chunk.count(b"\n")
            before, chunk = chunk[-1:], following
    if opened:
        raise _bad_quote(shown, opened_at)


def uneven_row(file: Path, delimiter: str) -> tuple[int, int, int] | None:
    """The first data row that has not as many cells as the header: its number, its cells, the header's."""
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as source, contextlib.suppress(csv.Error):
        rows = (row for row in csv.reader(source, delimiter=delimiter) if row)  # pyarrow leaves out empty lines, too
        expected = len(next(rows, ()))
        uneven = ((number, len(row), expected) for number, row in enumerate(rows, 1) if len(row) != expected)
        return next(uneven, None)
    return None


def line_that_is_no_text(file: Path) -> int | None:
    """The number of the first line that is not UTF-8."""
    with file.open("rb") as source:
        for number, line in enumerate(source, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def _zero_byte(shown: str, line: int) -> BatchRequestError:
    return BatchRequestError(shown, f"line {line}: there is a zero byte, so it is damaged, or no text in UTF-8.")


def _bad_quote(shown: str, line: int) -> BatchRequestError:
    problem = "a quotation mark must surround a whole cell, one inside of it must be doubled, and it must be closed."
    return BatchRequestError(shown, f"line {line}: {problem}")
