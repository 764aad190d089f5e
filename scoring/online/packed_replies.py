"""Finds the values in the replies to many HMGET commands, without an object for each of them.

For hundreds of replies, hiredis and decoding its objects take two to three times as much CPU time (docs/adr/007).
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scoring.feast_plugins.packed_values import PADDING, PackedValues

END = b"\r\n"
MAX_LENGTH = 99
"""Of a value, in bytes."""


class _Header(NamedTuple):
    """The bytes from the END before a value to its first byte: as a word, which of its bits matter, and how many."""

    bits: np.uint64
    mask: np.uint64
    size: int


def _header(pattern: bytes) -> _Header:
    """Return a header. In the pattern, a question mark is a decimal digit, and bytes after it may be any."""
    bits = pattern.replace(b"?", b"\x30").ljust(8, b"\0")  # the digits are 0x30 to 0x39
    mask = b"".join(b"\xf0" if byte == ord("?") else b"\xff" for byte in pattern).ljust(8, b"\0")
    return _Header(np.uint64(int.from_bytes(bits, "little")), np.uint64(int.from_bytes(mask, "little")), len(pattern))


SHORT, LONG, MISSING = map(_header, (b"\r\n$?\r\n", b"\r\n$??\r\n", b"\r\n$-1\r\n"))
FIRST_DIGIT, SECOND_DIGIT, DIGIT = np.uint64(8 * 3), np.uint64(8 * 4), np.uint64(0x0F)


class UnusualReply(Exception):
    """A reply is an error, or does not consist of `width` short values."""


class PackedReplies:
    """Finds the values of the next `count` replies, of `width` values each, in what is received."""

    def __init__(self, count: int, width: int) -> None:
        self._count, self._width = count, width
        self._head = b"*%d\r\n" % width
        self._between = END + self._head
        self._max_size = len(self._between) + width * (LONG.size + MAX_LENGTH + len(END))
        self._sizes: list[int] = []  # of the replies that seem to be complete
        self._at = self._checked = 0
        self._followed = False

    def find(self, received: bytearray) -> tuple[PackedValues, int] | None:
        """Return the values, and the size of the replies in bytes; None if bytes are missing.

        Args:
            received: what has been received since the first reply began.

        Raises:
            UnusualReply: a reply is an error, or does not consist of `width` values of at most MAX_LENGTH bytes.
        """
        if not received.startswith(self._head[: len(received)]):
            raise UnusualReply
        # A value may contain the same bytes. `_follow` checks that replies begin there.
        missing = self._count - 1 - len(self._sizes)
        *replies, rest = bytes(memoryview(received)[self._at :]).split(self._between, missing)
        self._sizes += map(len, replies)
        self._at = len(received) - len(rest)
        if len(replies) == missing:
            end = self._end_of_last(rest)
            if end is not None:
                return self._follow(bytes(received), [*self._sizes, end])
            if self._sizes and not self._followed:  # or it waits for bytes that only a value announces
                self._follow(bytes(received), self._sizes)
                self._followed = True
        elif len(rest) > self._max_size:
            raise UnusualReply
        if received.find(END + b"-", self._checked) >= 0:  # an error: no more may be received
            raise UnusualReply
        self._checked = max(0, len(received) - len(END))
        return None

    def _end_of_last(self, rest: bytes) -> int | None:
        """Return where the values of the last reply end, in all that follows the replies before it."""
        at = len(self._head) if self._count == 1 else 0
        for _ in range(self._width):
            line = rest.find(END, at)
            if line < 0:
                return None
            header = rest[at:line]
            if re.fullmatch(rb"\$(-1|\d{1,2})", header) is None:
                raise UnusualReply
            length = int(header[1:])
            at = line + len(END) + (length + len(END) if length >= 0 else 0)
        return at - len(END) if at <= len(rest) else None

    def _follow(self, received: bytes, sizes: Sequence[int]) -> tuple[PackedValues, int]:
        """Find the values of the first replies, whose sizes are checked."""
        ends = np.array(sizes) + len(self._between)
        np.cumsum(ends, out=ends)
        ends -= len(self._between)
        at = np.empty(len(ends), np.int64)  # of the END before the next value
        at[0], at[1:] = len(self._head) - len(END), ends[:-1] + len(self._head)
        content = received + PADDING
        words = np.ndarray(len(content) - 7, "<u8", content, 0, (1,))
        starts, lengths = np.empty((2, self._width, len(ends)), np.int64)
        for field in range(self._width):
            at = _find_values(words, at, starts[field], lengths[field])
        if (at != ends).any():  # otherwise they are the replies, because each begins where the one before it ends
            raise UnusualReply
        return PackedValues(content, words, starts, lengths), int(ends[-1]) + len(END)


def _find_values(words: np.ndarray, at: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Find the next value of each reply, from the END before it on. Return the places of the END after it."""
    headers = words[at]
    lengths[:] = headers >> FIRST_DIGIT & DIGIT
    np.add(at, SHORT.size, out=starts)
    short = headers & SHORT.mask == SHORT.bits
    after: np.ndarray = starts + lengths
    if np.count_nonzero(short) < len(short):
        long, missing = (headers & kind.mask == kind.bits for kind in (LONG, MISSING))
        if not (short | long | missing).all():
            raise UnusualReply
        lengths[long] = 10 * lengths[long] + (headers[long] >> SECOND_DIGIT & DIGIT).astype(np.int64)
        lengths[missing] = -1
        starts += ~short
        after = starts + np.where(missing, -len(END), lengths)  # the header's END is also that of a missing value
    return after
