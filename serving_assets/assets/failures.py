"""Convert this project's errors to one-line Dagster failures."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from scoring.errors import FeatureServiceNotFound, FeatureStoreError, RegistryUnreachable, ServingError, StorageError


@contextlib.contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Convert a ServingError to a dg.Failure with the same message. Allow retries of outages only."""
    try:
        yield
    except ServingError as error:
        raise dg.Failure(description=str(error), allow_retries=may_succeed_later(error)) from None


def may_succeed_later(error: ServingError) -> bool:
    """Return whether the same step may succeed later without a change of request, model or settings."""
    outages = RegistryUnreachable | FeatureStoreError | StorageError
    return isinstance(error, outages) and not isinstance(error, FeatureServiceNotFound)
