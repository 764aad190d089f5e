"""Finds faults in a text file that a CSV reader does not name or detect."""

import contextlib
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scoring.errors import BatchRequestError

# First bytes of compressed files. Their names may have any suffix.
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip; spreadsheets are zip files, too",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
CHUNK_BYTES = 1 << 22
SEPARATORS = {",": "Commas", "\t": "Tabs", ";": "Semicolons", "|": "Bars"}


def check_encoding(file: Path, place: str) -> None:
    """Refuse files that pyarrow refuses without naming the cause, or reads incorrectly.

    Raises:
        BatchRequestError: the file is empty, compressed, or not UTF-8 text by its first CHUNK_BYTES.
    """
    with file.open("rb") as source:
        start = source.read(CHUNK_BYTES)
    if not start.strip():
        raise BatchRequestError(place, "it is empty: its first line must name the columns.")
    for mark, kind in COMPRESSED.items():
        if start.startswith(mark):
            raise BatchRequestError(place, f"it is compressed ({kind}): decompress it into a text file.")
    # In UTF-16, about every second byte of text in a European language is zero.
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start.count(b"\0") > len(start) // 4:
        raise BatchRequestError(place, "it is not UTF-8 text. It may be UTF-16, as spreadsheets write it.")
    if b"\0" in start:
        raise _zero_byte(place, start.count(b"\n", 0, start.index(b"\0")) + 1)


def check_quotes(file: Path, place: str, delimiter: str) -> None:
    """Refuse a text file whose quotation marks do not enclose whole cells.

    pyarrow takes a quotation mark that is never closed as the start of one cell up to the end of the file, and drops
    all rows in between without an error (pyarrow 25).

    Raises:
        BatchRequestError: names the line of the first misplaced quotation mark, or of one that is not closed.
    """
    may_be_beside = np.zeros(256, dtype=bool)
    may_be_beside[list(f'{delimiter}\r\n"'.encode())] = True
    opened, line, opened_at, before = False, 1, 0, b"\n"
    with file.open("rb") as source:
        chunk = source.read(CHUNK_BYTES).removeprefix(b"\xef\xbb\xbf")
        while chunk:
            following = source.read(CHUNK_BYTES)
            if b"\0" in chunk:
                raise _zero_byte(place, line + chunk.count(b"\n", 0, chunk.index(b"\0")))
            text = np.frombuffer(before + chunk + (following[:1] or b"\n"), np.uint8)
            quotes = np.flatnonzero(text[1:-1] == ord('"')) + 1
            opening = (np.arange(len(quotes)) % 2 == 0) ^ opened
            wrong = quotes[~may_be_beside[text[np.where(opening, quotes - 1, quotes + 1)]]]
            if len(wrong):
                raise _bad_quote(file, place, delimiter, line + chunk.count(b"\n", 0, int(wrong[0]) - 1))
            if len(quotes):
                opened = bool(opening[-1])
                opened_at = line + chunk.count(b"\n", 0, int(quotes[-1]) - 1)
            line += chunk.count(b"\n")
            before, chunk = chunk[-1:], following
    if opened:
        raise _bad_quote(file, place, delimiter, opened_at)


def find_uneven_row(file: Path, delimiter: str) -> tuple[int, int, list[str]] | None:
    """Find the first data row whose number of cells differs from the header's.

    Returns its number from 1, its number of cells, and the header; None if there is no such row.
    """
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as source, contextlib.suppress(csv.Error):
        rows = (row for row in csv.reader(source, delimiter=delimiter) if row)  # pyarrow skips empty lines, too
        header = next(rows, [])
        uneven = ((number, len(row), header) for number, row in enumerate(rows, 1) if len(row) != len(header))
        return next(uneven, None)
    return None


def separator_hint(header: Sequence[str], delimiter: str | None) -> str:
    """Return a sentence that names the separator probably used instead of `delimiter`; empty if there is none."""
    for separator, name in SEPARATORS.items():
        if delimiter and separator != delimiter and any(separator in cell for cell in header):
            needed = SEPARATORS[delimiter].lower()
            return f" {name} probably separate its columns, as in some spreadsheets' CSV files: save it with {needed}."
    return ""


def line_that_is_not_utf8(file: Path) -> int | None:
    """Return the number of the first line that is not UTF-8; None if there is none."""
    with file.open("rb") as source:
        for number, line in enumerate(source, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return None


def _zero_byte(place: str, line: int) -> BatchRequestError:
    return BatchRequestError(place, f"line {line} has a zero byte: the file is damaged, or is not UTF-8 text.")


def _bad_quote(file: Path, place: str, delimiter: str, line: int) -> BatchRequestError:
    with file.open(encoding="utf-8-sig", errors="replace") as source:
        header = source.readline()
    hint = "" if delimiter in header else separator_hint([header], delimiter)
    problem = "quotation marks must enclose a whole cell, and one inside a cell must be doubled."
    return BatchRequestError(place, f"line {line} has an unclosed or misplaced quotation mark: {problem}{hint}")
