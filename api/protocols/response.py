"""The parts of HTTP messages that wire formats handle."""

import urllib.parse
from collections.abc import Mapping
from typing import NamedTuple

Headers = Mapping[bytes, bytes]
"""Header name in lower case → value; the first one if a name is repeated."""


class Response(NamedTuple):
    """A complete response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, values in visible ASCII. `send_response` adds Content-Length."""
    body: bytes


def media_type(headers: Headers) -> bytes:
    """Return the media type of a request's body in lower case, without parameters; empty if it is not declared."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def header_value(text: str) -> bytes:
    """Return `text` as a header value: percent-encoded, except for visible ASCII and the spaces between words."""
    stripped = text.strip() == text
    if stripped and text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()  # quote() returns the same and takes ten times as long
    return urllib.parse.quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|} " if stripped else "/").encode()
