"""Why another server failed, in our own words: its own may name hosts, users and keys, and belong into a log."""

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


def in_our_words(error: BaseException) -> str:
    """What kind of failure an error, or what led to it, tells of; of another kind than known ones, its type."""
    names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    for words, kinds in KINDS.items():
        if names & kinds:
            return words
    return type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
