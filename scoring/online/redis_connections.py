"""Idle connections to Redis, outside of redis-py's pool.

The pool takes 0.1 ms to hand out a connection and to take it back (redis-py 7.4), a tenth of a lookup.
"""

import contextlib
import select
import socket
from collections import deque
from typing import Any

from redis._parsers.hiredis import _HiredisParser

RESP2 = 2
"""The protocol version in which a server sends only replies."""


def parsed_by_hiredis(connection: Any) -> bool:
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
        if plain and parsed_by_hiredis(connection):
            self._idle.append(connection)
        else:
            self._pool.release(connection)


def _is_quiet(sock: socket.socket) -> bool:
    """Return whether a connection is open and has no bytes to read."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)
