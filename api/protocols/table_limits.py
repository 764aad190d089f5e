"""Checks of Arrow streams and Parquet files before Arrow decodes them, which would use memory without a limit.

A few compressed bytes can decode to gigabytes. pyarrow (25) has no limit for that, so the sizes are read here from the
pages and messages themselves: what the footer of a Parquet file says about them need not be true.
"""

import struct
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from api.errors import BodyTooLarge

# A reader's memory is a multiple of these, regardless of the number of rows.
MAX_METADATA_BYTES = 1 << 18
MAX_PARTS = 1000
"""Messages of a stream; row groups of a file, and any other list of its footer."""
MAX_PAGES = 20_000
MAX_VALUES = 500_000
"""In the footer, or in the headers of all pages."""
MAX_DEPTH = 12
DATA_PAGE, DATA_PAGE_V2 = 5, 8
# Encodings that make more of a page than its size: a string of DELTA_BYTE_ARRAY may repeat the beginning of the one
# before, and the page of DELTA_LENGTH_BYTE_ARRAY says how many lengths Arrow decodes, all at once.
DELTA_STRINGS = {6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY"}


class Unreadable(Exception):
    """A table that is malformed or that the limits exclude; the message says why."""


def check_stream(body: bytes) -> None:
    """Raise Unreadable unless the body is one Arrow IPC stream whose messages are not larger than in memory."""
    if body.startswith(b"ARROW1"):
        raise Unreadable("it is an Arrow file: write a stream instead (pyarrow.ipc.new_stream)")
    source = pa.BufferReader(body)
    for number, message in enumerate(pa.ipc.MessageReader.open_stream(source)):
        if number == MAX_PARTS or message.metadata.size > MAX_METADATA_BYTES:
            raise Unreadable(f"it has more than {MAX_PARTS} batches or too large a schema")
        _check_message(message.type, message.metadata.to_pybytes())
    if source.tell() != len(body):
        raise Unreadable("bytes follow the end of the stream")


def _check_message(kind: str, metadata: bytes) -> None:
    """Check a FlatBuffers `Message` (format/Message.fbs of Arrow), which pyarrow has verified."""
    if kind not in {"dictionary", "record batch"}:
        return
    batch = _member(metadata, _follow(metadata, 0), 2)
    if batch is not None and kind == "dictionary":
        if (delta := _member(metadata, _follow(metadata, batch), 2)) is not None and metadata[delta]:
            raise Unreadable("it has delta dictionaries: write complete dictionaries")
        batch = _member(metadata, _follow(metadata, batch), 1)
    if batch is None or _member(metadata, _follow(metadata, batch), 3) is not None:
        raise Unreadable("its buffers are compressed: write them uncompressed")


def _follow(data: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


def _member(data: bytes, table: int, number: int) -> int | None:
    """Return the position of a member of a FlatBuffers table; None if it is absent."""
    virtual = table - struct.unpack_from("<i", data, table)[0]
    place = 4 + 2 * number
    if place >= struct.unpack_from("<H", data, virtual)[0]:
        return None
    offset = int(struct.unpack_from("<H", data, virtual + place)[0])
    return table + offset if offset else None


class Footer(NamedTuple):
    """The end of a Parquet file, which describes it."""

    schema: pq.ParquetSchema
    groups: list[dict[int, Any]]
    """Each is a `RowGroup` (parquet.thrift), field → value. pyarrow's own ends the process if a column is malformed."""

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return sum(group[3] for group in self.groups)


def read_footer(body: bytes) -> Footer:
    """Return the footer of a Parquet file.

    Raises:
        Unreadable: the body is not a Parquet file, or its footer is too large.
    """
    if len(body) < 12 or not (body.startswith(b"PAR1") and body.endswith(b"PAR1")):
        raise Unreadable("it does not begin and end with PAR1")
    size = int.from_bytes(body[-8:-4], "little")
    if size > MAX_METADATA_BYTES:
        raise Unreadable(f"its footer has more than {MAX_METADATA_BYTES} bytes")
    # The limit of lists is also one of the schema's depth: Arrow reads it recursively.
    with pq.ParquetFile(pa.BufferReader(body), thrift_container_size_limit=MAX_PARTS, pre_buffer=False) as file:
        return Footer(file.metadata.schema, _Thrift(body[-8 - size :]).struct()[4])


def check_pages(body: bytes, footer: Footer, max_bytes: int) -> None:
    """Check the pages of a Parquet file.

    Raises:
        BodyTooLarge: they have more than `max_bytes` once they are decompressed.
        Unreadable: they are malformed, or there are too many.
    """
    size = pages = 0
    thrift = _Thrift(body)
    for group in footer.groups:
        if len(group[1]) != len(footer.schema):
            raise Unreadable("a row group does not have one chunk per column")
        for chunk in (column[3] for column in group[1]):
            if chunk[5] != group[3]:  # Arrow decodes as many values, possibly out of a few bytes
                raise Unreadable("a column does not have one value per row")
            thrift.at = chunk[11] if 0 < chunk.get(11, 0) < chunk[9] else chunk[9]  # the dictionary comes first
            end = thrift.at + chunk[7]
            if not 0 < thrift.at <= end <= len(body):
                raise Unreadable("a column is outside of the file")
            while thrift.at < end:
                header = thrift.struct()
                decompressed, compressed = header[2], header[3]
                encodings = header.get(DATA_PAGE, {}).get(2), header.get(DATA_PAGE_V2, {}).get(4)
                pages += 1
                if decompressed < 0 or compressed < 0 or pages > MAX_PAGES:
                    raise Unreadable(f"a page is malformed, or it has more than {MAX_PAGES} pages")
                for encoding in DELTA_STRINGS.keys() & encodings:
                    raise Unreadable(f"it has the unsupported encoding {DELTA_STRINGS[encoding]}: use another one")
                thrift.at += compressed
                size += max(decompressed, compressed)
                if size > max_bytes:
                    raise BodyTooLarge(max_bytes, "once it is decompressed")


class _Thrift:
    """Reads structs in Thrift's compact protocol, up to a number of values."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values_left = MAX_VALUES
        self.at = 0
        """Where the next value begins."""

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Read a struct: field → value. Values of strings and doubles are None."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            if number in fields:  # Arrow would merge them
                raise Unreadable("a field is repeated")
            kind = head & 15
            fields[number] = kind == 1 if kind in {1, 2} else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        self._values_left -= 1
        if self._values_left < 0 or depth > MAX_DEPTH:
            raise Unreadable(f"it has more than {MAX_VALUES} metadata values, or nested ones")
        if kind in {1, 2, 3}:  # booleans in lists, and bytes
            return self._byte()
        if kind in {4, 5, 6}:
            return self._integer()
        if kind in {7, 8}:
            size = 8 if kind == 7 else self._varint()
            self.at += size  # not in one line, because reading the size moves it
            return None
        if kind == 9:
            head = self._byte()
            size = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(size)]
        if kind == 12:
            return self.struct(depth + 1)
        raise Unreadable("its metadata is malformed")

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _varint(self) -> int:
        value = shift = 0
        while shift < 64:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
        raise Unreadable("its metadata is malformed")
