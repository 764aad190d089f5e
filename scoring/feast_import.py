"""Import Feast without having typeguard instrument its classes, which is two thirds of its import. See docs/adr/004."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from scoring.importing import collector_paused


def import_feast() -> None:
    """Import Feast, quickly if nobody has imported it yet. Later imports of it get this one."""
    if "feast" not in sys.modules:
        with _without_instrumentation(), collector_paused():
            import feast  # noqa: F401


@contextlib.contextmanager
def _without_instrumentation() -> Iterator[None]:
    # Feast 0.67 decorates its classes with typeguard.typechecked (4.5), whose only switch is python -O: that would take
    # the asserts out of every package. What it checks are the types of arguments, which mypy checks in our calls.
    import typeguard

    original = typeguard.typechecked
    typeguard.typechecked = _unchanged  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = original


def _unchanged(target: Any = None, **_: Any) -> Any | Callable[[Any], Any]:
    return (lambda each: each) if target is None else target
