"""Decodes serialized numbers and timestamps at their places among other bytes, without an object for each of them."""

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from scoring.feast_plugins.value_decoder import CONTINUED, LAYOUTS, MAX_GROUPS, Layout, decode_timestamps, decode_values

WORD_BYTES = 8
PADDING = bytes(16 * WORD_BYTES)
"""Follows the last value, so that there is a word at each place."""
BYTE, GROUP, ONE = np.uint64(0xFF), np.uint64(0x7F), np.uint64(1)
EACH_CONTINUED = np.uint64(int.from_bytes(bytes([CONTINUED] * WORD_BYTES), "little"))


class PackedValues(msgspec.Struct, frozen=True):
    """The serialized values of `width` fields of n rows, at their places among other bytes."""

    content: bytes
    """All bytes, and PADDING."""
    words: np.ndarray
    """The eight bytes from each place on, little-endian uint64."""
    starts: np.ndarray
    """Place of each value, int64 (width, n)."""
    lengths: np.ndarray
    """Size of each value in bytes, int64 (width, n); -1 if there is none."""

    def timestamps(self, place: int) -> np.ndarray:
        """Decode a field's Timestamps: see `decode_timestamps`."""
        starts, lengths = self.starts[place], self.lengths[place]
        if not self._are_equal(starts, lengths):
            return decode_timestamps(self._separate(place))
        start, length = int(starts[0]), int(lengths[0])
        return np.full(len(starts), decode_timestamps([self.content[start : start + length]])[0])

    def numbers(self, places: Sequence[int], layout: Layout) -> np.ndarray | None:
        """Decode the Values of several fields: see `decode_numbers`."""
        lengths = self.lengths[places, :]
        return None if int(lengths.min()) <= 0 else self._unpack(self.starts[places, :], lengths, layout)

    def array(self, place: int, dtype: pa.DataType) -> pa.Array:
        """Decode a field's Values: see `decode_values`."""
        starts, lengths = self.starts[place], self.lengths[place]
        present = lengths > 0
        any_of_them = int(np.argmax(present))
        if dtype in LAYOUTS and present[any_of_them]:
            starts = np.where(present, starts, starts[any_of_them])
            numbers = self._unpack(starts, np.where(present, lengths, lengths[any_of_them]), LAYOUTS[dtype])
            if numbers is not None:
                return pa.array(numbers, dtype, mask=~present)
        return decode_values(self._separate(place), dtype)

    def _separate(self, place: int) -> list[bytes | None]:
        starts = self.starts[place]
        ends = starts + self.lengths[place]
        return [
            self.content[start:end] if start <= end else None
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        ]

    def _are_equal(self, starts: np.ndarray, lengths: np.ndarray) -> bool:
        length = int(lengths[0])
        if length < 0 or np.count_nonzero(lengths != length):
            return False
        for place in range(0, length, WORD_BYTES):
            words = self.words[starts + place]
            beyond = np.uint64(8 * max(0, place + WORD_BYTES - length))
            if np.count_nonzero((words ^ words[0]) << beyond):
                return False
        return True

    def _unpack(self, starts: np.ndarray, lengths: np.ndarray, layout: Layout) -> np.ndarray | None:
        heads = self.words[starts]
        if np.count_nonzero(heads & BYTE != np.uint64(layout.tag)):
            return None
        if layout.packed is None:
            integers = self._unpack_integers(heads, starts + 1, lengths - 1)
            return None if integers is None else layout.within_limits(integers)
        if np.count_nonzero(lengths != layout.packed.itemsize):
            return None
        value = layout.packed["value"]
        numbers = self.words[starts + 1] if value.itemsize == WORD_BYTES else (heads >> np.uint64(8)).astype("<u4")
        return numbers.view(value)  # type: ignore[no-any-return]

    def _unpack_integers(self, heads: np.ndarray, starts: np.ndarray, sizes: np.ndarray) -> np.ndarray | None:
        """Unpack int64 from groups of seven bits; None if a number does not end with its Value."""
        most = int(sizes.max())
        if not 1 <= int(sizes.min()) <= most <= MAX_GROUPS:
            return None
        groups = heads >> np.uint64(8) if most < WORD_BYTES else self.words[starts]
        bits = (8 * sizes).view(np.uint64)
        groups &= (ONE << bits) - ONE  # a shift by 64 bits or more results in 0
        if np.count_nonzero(groups & EACH_CONTINUED != (ONE << bits - np.uint64(8)) - ONE & EACH_CONTINUED):
            return None
        integers = groups & GROUP
        for place in range(1, min(most, WORD_BYTES)):
            integers |= groups >> np.uint64(place) & GROUP << np.uint64(7 * place)
        if most > WORD_BYTES:
            beyond = np.maximum(sizes - WORD_BYTES, 0)
            last = self.words[starts + WORD_BYTES] & (ONE << (8 * beyond).view(np.uint64)) - ONE
            if np.count_nonzero(last & EACH_CONTINUED != np.where(beyond == 2, CONTINUED, 0)):
                return None
            integers |= (last & GROUP) << np.uint64(56) | last >> np.uint64(8) << np.uint64(63)
        return integers.view(np.int64)
