"""Connections to Redis, without redis-py's pool for idle ones, and without its parsers for what they receive.

The pool takes 0.1 ms to hand out a connection and to take it back (redis-py 7.4), a tenth of a lookup.
"""

import contextlib
import itertools
import math
import select
import socket
import time
from collections import deque
from typing import Any

from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from scoring.feast_plugins.packed_values import PackedValues
from scoring.online.packed_replies import PackedReplies, UnusualReply

RESP2 = 2
"""The protocol version in which a server sends only replies."""


def _parsed_by_hiredis(connection: Any) -> bool:
    """Return whether a connection receives only replies, and its parser is hiredis."""
    return isinstance(connection._parser, _HiredisParser) and connection.protocol == RESP2


class Connections:
    """Connections of a pool. Threads may share it."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._idle: deque[Any] = deque()

    def take(self) -> Any:
        """Return a connection, which may have to be opened."""
        connection = self.take_idle()
        return self._pool.get_connection() if connection is None else connection

    def take_idle(self) -> Any:
        """Return an open connection; None if none is idle."""
        with contextlib.suppress(IndexError):
            while True:
                connection = self._idle.pop()
                if _is_quiet(connection._sock):
                    return connection
                connection.disconnect()
                self._pool.release(connection)
        return None

    def give_back(self, connection: Any) -> None:
        """Take back a connection, without unread replies unless it is closed."""
        plain = type(connection._sock) is socket.socket and not connection.health_check_interval
        if plain and _parsed_by_hiredis(connection):
            self._idle.append(connection)
        else:
            self._pool.release(connection)


def _is_quiet(sock: socket.socket) -> bool:
    """Return whether a connection is open and has no bytes to read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


class Replies:
    """The replies that a connection receives, in order. A reply may be an error from Redis."""

    def __init__(self, connection: Any) -> None:
        """Read from now on."""
        timeout_s = connection.socket_timeout
        self._give_up_at = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._connection = connection
        self._parser = connection._parser
        self._by_hiredis = _parsed_by_hiredis(connection)
        # Received bytes; None once hiredis has them, and all that follow.
        self._unparsed = bytearray() if self._by_hiredis else None

    def read_packed(self, count: int, width: int) -> PackedValues | None:
        """Wait for the next replies of `width` values each; None if they or earlier ones are to be parsed by `read`.

        Raises:
            redis.TimeoutError: see `read`.
            redis.ConnectionError: the connection was closed.
        """
        if self._unparsed is None:
            return None
        replies = PackedReplies(count, width)
        try:
            while (found := replies.find(self._unparsed)) is None:
                self._check_deadline()
                self._unparsed += self._received()
        except UnusualReply:
            return None
        values, size = found
        del self._unparsed[:size]
        return values

    def read(self, count: int) -> list[Any]:
        """Wait for the next replies.

        Raises:
            redis.TimeoutError: they have not arrived within the connection's timeout, which restarts with each byte, so
                that a slow connection would be kept and used repeatedly.
        """
        if not self._by_hiredis:  # other protocols have messages between replies
            return [self._parser.read_response() for _ in range(count)]
        if self._unparsed is not None:
            self._parser._reader.feed(bytes(self._unparsed))
            self._unparsed = None
        replies = self.arrived(count)
        while len(replies) < count:
            self._check_deadline()
            self.receive()
            replies += self.arrived(count - len(replies))
        return replies

    def _check_deadline(self) -> None:
        if time.monotonic() > self._give_up_at:
            raise RedisTimeoutError("its response did not arrive in time")

    def _received(self) -> memoryview:
        """Receive bytes, with the errors of redis-py's parser."""
        buffer = self._parser._buffer
        try:
            size = self._connection._sock.recv_into(buffer)
        except TimeoutError:
            raise RedisTimeoutError("Timeout reading from socket") from None
        except OSError as error:
            raise RedisConnectionError(f"Error while reading from socket: {error.args}") from error
        if not size:
            raise RedisConnectionError("Connection closed by server.")
        return memoryview(buffer)[:size]

    def receive(self) -> None:
        """Receive bytes, which hiredis parses."""
        self._parser.read_from_socket()

    def arrived(self, count: int) -> list[Any]:
        """Return the replies that have arrived, at most this many."""
        # read_response of the connection and of its parser takes several times as long as hiredis does for a reply.
        return list(itertools.islice(iter(self._parser._reader.gets, NOT_ENOUGH_DATA), count))
