"""Strict decoding of JSON: one value in UTF-8 of the decoder's type, in which no object has a member twice."""

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

from api.errors import MalformedBody

# msgspec's words for what `Int64 | Integral64` accepts.
INTEGER_MESSAGES = {"`float` that's a multiple of 1.0": "`int`", "`int | float": "`int"}
# Python's names of types in msgspec's messages → those of JSON Schema.
JSON_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "datetime": "date and time"}


def decode(
    decoder: msgspec.json.Decoder[Any],
    body: bytes,
    invalid: Callable[[str], Exception],
    place: str = "",
    *,
    skips_members: bool = False,
) -> Any:
    """Decode JSON in UTF-8. `check_duplicates` checks the rest.

    Args:
        decoder: of the type that the JSON must have.
        body: the JSON.
        invalid: makes the error for JSON of another type from a description of the problem.
        place: describes which part of the request's body it is, for errors.
        skips_members: whether the type allows unknown members, whose strings msgspec does not check.

    Raises:
        MalformedBody: it is not JSON in UTF-8.
        Exception: `invalid`'s.
    """
    try:
        if skips_members:
            body.decode()
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _check_is_json(body, place)
        raise invalid(sentence(error)) from None


def check_duplicates(body: bytes, invalid: Callable[[str], Exception], strings: int | None = None) -> None:
    """Raise `invalid`'s error if an object in decoded JSON has a member twice: msgspec silently keeps the last one.

    `strings` is the number of strings that were decoded, if it is known. Each has two quotes, so a body with exactly
    their quotes has no duplicate; any other body is decoded again, slowly.
    """
    if strings is not None and body.count(b'"') == 2 * strings:
        return
    try:
        json.loads(body, object_pairs_hook=_without_duplicates, parse_int=str)  # int refuses 5000 digits
    except _DuplicateMember as duplicate:
        raise invalid(f"Duplicate JSON member {duplicate.name[:50]!r}") from None
    except RecursionError:
        raise MalformedBody("it is nested too deeply") from None


def sentence(error: Exception) -> str:
    """Return msgspec's message on a body or value that does not fit its type, in JSON's words."""
    problem, *place = str(error).partition(" - at ")
    for old, new in INTEGER_MESSAGES.items():
        problem = problem.replace(old, new)
    if problem.startswith("Expected "):
        problem = re.sub(rf"\b({'|'.join(JSON_TYPES)})\b", lambda found: JSON_TYPES[found[0]], problem)
    return "".join([problem[:1].upper(), problem[1:], *place])


def _check_is_json(body: bytes, place: str) -> None:
    if not body:
        raise MalformedBody("it is empty")
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except UnicodeDecodeError as error:
        raise MalformedBody(f"{place}byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise MalformedBody(f"{place}it is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise MalformedBody(place + str(error).removeprefix("JSON is malformed: ")) from None


class _DuplicateMember(Exception):
    def __init__(self, name: str) -> None:
        self.name = name


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise _DuplicateMember(next(name for name in names if names.count(name) > 1))
    return members
