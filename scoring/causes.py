"""Why something failed: what an error says, or what led to it.

Another server's failures are told in our own words: its own may name hosts, users and keys, and belong into a log.
"""

import errno
import os
from collections.abc import Iterator

# Names of exceptions and not the classes: each store's client has its own, and none is imported for this. The first
# that fits counts, as redis-py's AuthenticationError is a ConnectionError, too.
KINDS: dict[str, frozenset[str]] = {
    "it refuses our user or password": frozenset({"AuthenticationError", "AuthorizationError", "NoPermissionError"}),
    "it is still loading its data": frozenset({"BusyLoadingError"}),
    "it refused the connection": frozenset({"ConnectionRefusedError"}),
    "the name of its host is not known": frozenset({"gaierror"}),
    "it gave no answer in time": frozenset({"TimeoutError", "Timeout"}),
    "the connection to it failed": frozenset({"ConnectionError"}),
    "it answered with an error": frozenset({"ResponseError"}),
}
# A full disk, a quota, this process' own limit, a file system that became read-only.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def in_our_words(error: BaseException) -> str:
    """What kind of failure an error, or what led to it, tells of; of another kind than known ones, its type."""
    names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    for words, kinds in KINDS.items():
        if names & kinds:
            return words
    return type(error).__name__


def why_no_room(error: BaseException) -> str | None:
    """What the system says where an error means that it takes no more bytes of ours; None where it means another thing.

    MLflow keeps what led to its own errors in their text alone (3.17).
    """
    for each in _chain(error):
        for number in NO_ROOM:
            if (isinstance(each, OSError) and each.errno == number) or f"[Errno {number}] " in str(each):
                return os.strerror(number)
        if isinstance(each, FileNotFoundError) and "No usable temporary directory" in str(each):
            return os.strerror(errno.ENOSPC)  # tempfile tried to write to some
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
