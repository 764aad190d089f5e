"""The parts of HTTP messages that wire formats handle."""

import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import NamedTuple

JSON, CSV = b"application/json", b"text/csv"
JSON_HEADER = (b"content-type", JSON)

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


def negotiate(accept: bytes | None, own: bytes, offered: Sequence[bytes]) -> bytes | None:
    """Choose the media type of a response (RFC 9110, 12.5.1).

    Args:
        accept: the header Accept, if there is one.
        own: the media type of the request: chosen if no other one has a higher quality.
        offered: all media types of responses, the preferred first.

    Returns one of them; None if the client accepts none.
    """
    if not accept or accept == b"*/*":
        return own
    qualities: dict[str, float] = {}
    for item in accept.decode("latin-1").lower().split(","):
        media, *parameters = (part.strip() for part in item.split(";"))
        weights = [value.strip() for name, _, value in (each.partition("=") for each in parameters) if name == "q"]
        qualities[media] = float(weights[0]) if weights and re.fullmatch(r"[01](\.\d*)?", weights[0]) else 1.0

    def quality(media: bytes) -> float:
        name = media.decode()
        ranges = (name, f"{name.partition('/')[0]}/*", "*/*")
        return next((qualities[each] for each in ranges if each in qualities), 0.0)

    best = max((own, *offered), key=quality)
    return best if quality(best) > 0 else None


def header_value(text: str) -> bytes:
    """Return `text` as a header value: percent-encoded, except for visible ASCII and the spaces between words."""
    stripped = text.strip() == text
    if stripped and text.isascii() and text.isprintable() and "%" not in text:
        return text.encode()  # quote() returns the same and takes ten times as long
    return urllib.parse.quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|} " if stripped else "/").encode()
