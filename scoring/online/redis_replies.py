"""Replies to HMGET from a connection of redis-py."""

import contextlib
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

from redis import RedisError
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoring.errors import READING, FeatureStoreError, UnusableFeature
from scoring.online.redis_connections import parsed_by_hiredis


class NotRedis(FeatureStoreError):
    """A server other than Redis responded."""

    def __init__(self) -> None:
        super().__init__(READING, "the server at this address is not Redis: check the connection string")


class Replies:
    """The replies that a connection receives, in order. A reply may be an error from Redis."""

    def __init__(self, connection: Any) -> None:
        """Read from now on."""
        timeout_s = connection.socket_timeout
        self._give_up_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._parser = connection._parser
        self._by_hiredis = parsed_by_hiredis(connection)

    def read(self, count: int) -> list[Any]:
        """Wait for the next replies.

        Raises:
            redis.TimeoutError: they have not arrived within the connection's timeout, which restarts with each byte, so
                that a slow connection would be kept and used repeatedly.
        """
        if not self._by_hiredis:  # other protocols have messages between replies
            return [self._parser.read_response() for _ in range(count)]
        replies = self.received(count)
        while len(replies) < count:
            if time.monotonic() > self._give_up_at:
                raise RedisTimeoutError("its response did not arrive in time")
            self.receive()
            replies += self.received(count - len(replies))
        return replies

    def receive(self) -> None:
        """Receive bytes, which hiredis parses."""
        self._parser.read_from_socket()

    def received(self, count: int) -> list[Any]:
        """Return the replies that have arrived, at most this many."""
        # read_response of the connection and of its parser takes several times as long as hiredis does for a reply.
        return list(itertools.islice(iter(self._parser._reader.gets, NOT_ENOUGH_DATA), count))


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
