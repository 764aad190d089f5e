"""Text in HTTP headers, which hold visible ASCII only."""

import urllib.parse


def header_text(text: str) -> str:
    """`text` fit for a header: what is not visible ASCII is percent-encoded."""
    if text.isascii() and text.isprintable() and "%" not in text and text.strip() == text:
        return text  # the rest would leave it so, too, ten times as slowly
    return (
        urllib.parse.quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|} ")
        if text.strip() == text
        else urllib.parse.quote(text)
    )
