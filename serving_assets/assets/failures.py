"""Errors of ours as Dagster shows them: one line that says what to do."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from scoring.errors import FeatureServiceNotFound, FeatureStoreError, RegistryUnreachable, ServingError, StorageError


@contextlib.contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Turn a ServingError into a dg.Failure with the same text. Only outages may be retried."""
    try:
        yield
    except ServingError as error:
        raise dg.Failure(description=str(error), allow_retries=is_outage(error)) from None


def is_outage(error: ServingError) -> bool:
    """Whether the same step may succeed later without a change of request, model or settings."""
    outages = RegistryUnreachable | FeatureStoreError | StorageError
    return isinstance(error, outages) and not isinstance(error, FeatureServiceNotFound)
