"""Packs HMGET commands as bytes of the Redis protocol, and checks the replies to them (docs/adr/007)."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from redis import RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from scoring.errors import READING, FeatureStoreError, UnusableFeature
from scoring.online.reading import EntityRows

# The layout of a numeric join key. From this number on, packing commands as rows of an array is faster.
NUMBERS = {"int32": "<i4", "int64": "<i8"}
MANY_NUMBERS = 16


class NotRedis(FeatureStoreError):
    """A server other than Redis responded."""

    def __init__(self) -> None:
        super().__init__(READING, "the server at this address is not Redis: check the connection string")


class HmgetCommand:
    """Packs HMGET commands for the same fields of many hashes as bytes of the Redis protocol."""

    def __init__(self, fields: Sequence[bytes]) -> None:
        """Pack the fields, which are the same in each command."""
        self.width = len(fields)
        self._head = b"*%d\r\n%b" % (2 + len(fields), _argument(b"HMGET"))
        self._tail = b"".join(map(_argument, fields))

    def packed(self, keys: Sequence[bytes]) -> bytes:
        """Return one command per key, in order; there is at least one key."""
        length = len(keys[0])
        if set(map(len, keys)) == {length}:  # as with numeric join keys
            head, tail = b"%b$%d\r\n" % (self._head, length), b"\r\n" + self._tail
            return head + (tail + head).join(keys) + tail
        return self._head + (self._tail + self._head).join(map(_argument, keys)) + self._tail


def _argument(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class NumberedCommand:
    """Packs commands that differ only in a number of a fixed size."""

    def __init__(self, pack: Callable[[EntityRows], bytes], name: str, dtype: str) -> None:
        """Find the number in a command.

        Args:
            pack: returns the commands for some numbers.
            name: the column of the numbers.
            dtype: the layout of a number.
        """
        self.name, self._dtype = name, np.dtype(dtype)
        zero, ones = (np.frombuffer(pack({name: [number]}), np.uint8) for number in (0, -1))
        self._command, self._place = zero, int(np.argmax(zero != ones))

    def packed(self, numbers: Sequence[int]) -> bytes:
        """Return one command per number, in order."""
        commands = np.empty((len(numbers), len(self._command)), np.uint8)
        commands[:] = self._command
        size = self._dtype.itemsize
        commands[:, self._place : self._place + size] = np.array(numbers, self._dtype).view(np.uint8).reshape(-1, size)
        return commands.tobytes()


def columns_of(replies: Sequence[Any], width: int) -> list[tuple[Any, ...]]:
    """Return the n values of each of `width` fields from n replies, each with the fields of a hash.

    Raises:
        redis.ConnectionError: a reply is a connection error (Redis is loading its data, or has too many clients).
        NotRedis: a reply is neither an error nor a hash's fields.
        UnusableFeature: the value at an entity's key is not a hash.
        redis.RedisError: a reply is another error.
    """
    if set(map(type, replies)) == {list}:
        with contextlib.suppress(ValueError):  # of different lengths
            columns = list(zip(*replies, strict=True))
            if len(columns) == width:
                return columns
    errors = [reply for reply in replies if isinstance(reply, RedisError)]
    for error in errors:
        if isinstance(error, RedisConnectionError):
            raise error
    if any(not isinstance(reply, RedisError) and (type(reply) is not list or len(reply) != width) for reply in replies):
        raise NotRedis
    if "WRONGTYPE" in str(errors[0]):
        raise UnusableFeature(READING, errors[0])
    raise errors[0]
