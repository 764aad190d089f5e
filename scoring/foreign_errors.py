"""Describes errors of other software, such as clients of servers: in one line, and without its secrets."""

import errno
import os
import re
from collections.abc import Iterator

# Class names, because exception types differ between clients, and no client is imported for this. The first match
# counts, because redis-py's AuthenticationError is also a ConnectionError.
DESCRIPTIONS: dict[str, frozenset[str]] = {
    "it refused the user or password": frozenset({"AuthenticationError", "AuthorizationError", "NoPermissionError"}),
    "it is still loading its data": frozenset({"BusyLoadingError"}),
    "it refused the connection": frozenset({"ConnectionRefusedError"}),
    "its host name is unknown": frozenset({"gaierror"}),
    "it did not respond in time": frozenset({"TimeoutError", "Timeout"}),
    "the connection to it failed": frozenset({"ConnectionError"}),
    "it responded with an error": frozenset({"ResponseError"}),
}
# A full disk, a quota, this process's own limit, a file system that became read-only.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def first_line(cause: BaseException | str, limit: int = 200) -> str:
    """Return the first line of an error's message, at most `limit` characters, without credentials in addresses.

    Errors of client libraries can contain whole frames and stack traces.
    """
    text = str(cause).strip() or type(cause).__name__
    line = re.sub(r"(?<!\S)\S*://\S*", lambda address: without_secrets(address[0]), text.splitlines()[0])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def in_one_line(cause: BaseException) -> str:
    """Return an error's whole message as one line without colors; deltalake's have several lines, in color."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|↳", "", str(cause)).split())


def without_secrets(uri: str) -> str:
    """Return the address without user, password and query, for logs and errors.

    Everything before the last @ is removed, because a password may contain a / that should have been encoded.
    """
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"


def safe_description(error: BaseException) -> str:
    """Return the kind of failure of the error or its causes, without their messages, or else the error's class name."""
    names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    return next((words for words, kinds in DESCRIPTIONS.items() if names & kinds), type(error).__name__)


def public_description(cause: BaseException | str) -> str:
    """Return what callers of /ready may know of an error. A string has nothing that they may not know."""
    return cause if isinstance(cause, str) else f"{safe_description(cause)}; the log has details"


def is_outage(error: BaseException) -> bool:
    """Return whether a server could not be reached, did not respond in time, or refused the user."""
    return safe_description(error) in DESCRIPTIONS.keys() - {"it responded with an error"}


def why_no_room(error: BaseException) -> str | None:
    """Return the system's message if the error means that there is not enough disk space; None for any other error."""
    for each in _chain(error):
        for number in NO_SPACE:
            # MLflow 3.17 keeps the cause of its own errors only in their message.
            if (isinstance(each, OSError) and each.errno == number) or f"[Errno {number}] " in str(each):
                return os.strerror(number)
        if isinstance(each, FileNotFoundError) and "No usable temporary directory" in str(each):
            return os.strerror(errno.ENOSPC)  # tempfile failed to write to every candidate
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
