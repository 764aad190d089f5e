"""Checks of Arrow streams and Parquet files before Arrow decodes them, which would use memory without a limit.

A few compressed bytes can decode to gigabytes. pyarrow (25) has no limit for that, so the sizes are read here from the
pages and messages themselves: what the footer of a Parquet file says about them need not be true.
"""

import struct
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from api.errors import BodyTooLarge

# A reader's memory is a multiple of these, whatever the number of rows.
MAX_METADATA_BYTES = 1 << 18
MAX_PARTS = 1000
"""Messages of a stream; row groups of a file, and any other list of its footer."""
MAX_PAGES = 20_000
DATA_PAGE, DATA_PAGE_V2 = 5, 8
# Each string may repeat the beginning of the one before, so that a page's strings can be far larger than the page.
DELTA_BYTE_ARRAY = 7


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
            raise Unreadable("it has delta dictionaries: write whole ones")
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


def read_footer(body: bytes) -> pq.FileMetaData:
    """Return the metadata of a Parquet file.

    Raises:
        Unreadable: the body is not a Parquet file, or its footer is too large.
    """
    if len(body) < 12 or not (body.startswith(b"PAR1") and body.endswith(b"PAR1")):
        raise Unreadable("it does not begin and end with PAR1")
    if int.from_bytes(body[-8:-4], "little") > MAX_METADATA_BYTES:
        raise Unreadable(f"its footer has more than {MAX_METADATA_BYTES} bytes")
    # The limit of lists is also one of the schema's depth: Arrow reads it recursively.
    with pq.ParquetFile(pa.BufferReader(body), thrift_container_size_limit=MAX_PARTS, pre_buffer=False) as file:
        return file.metadata


def check_pages(body: bytes, footer: pq.FileMetaData, max_bytes: int) -> None:
    """Check the pages of a Parquet file.

    Raises:
        BodyTooLarge: they have more than `max_bytes` once they are decompressed.
        Unreadable: they are malformed, or there are too many.
    """
    size = pages = 0
    for group in range(footer.num_row_groups):
        for place in range(footer.num_columns):
            chunk = footer.row_group(group).column(place)
            at = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < at:
                at = chunk.dictionary_page_offset
            end = at + chunk.total_compressed_size
            if not 0 < at <= end <= len(body):
                raise Unreadable("a column lies outside of it")
            while at < end:
                header, at = _read_struct(body, at)
                decompressed, compressed = header[2], header[3]
                encodings = {header.get(DATA_PAGE, {}).get(2), header.get(DATA_PAGE_V2, {}).get(4)}
                pages += 1
                if decompressed < 0 or compressed < 0 or pages > MAX_PAGES:
                    raise Unreadable(f"a page is malformed, or it has more than {MAX_PAGES} pages")
                if DELTA_BYTE_ARRAY in encodings:
                    raise Unreadable("it has the encoding DELTA_BYTE_ARRAY: write another one")
                at += compressed
                size += max(decompressed, compressed)
                if size > max_bytes:
                    raise BodyTooLarge(max_bytes, "once it is decompressed")


def _read_struct(data: bytes, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a struct in Thrift's compact protocol: field → value, and where it ends. Page headers have no lists."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        kind = head & 15
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        if kind in {1, 2}:  # a boolean
            fields[number] = kind == 1
        elif kind == 3:
            at += 1
        elif kind in {4, 5, 6}:
            fields[number], at = _read_integer(data, at)
        elif kind == 8:  # bytes, of statistics
            length, at = _read_varint(data, at)
            at += length
        elif kind == 12 and depth < 3:
            fields[number], at = _read_struct(data, at, depth + 1)
        else:
            raise Unreadable("a page's header is malformed")
    return fields, at + 1


def _read_integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    raise Unreadable("a page's header is malformed")
