"""This project's errors as failures of a Dagster step: one line that names the remedy."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from scoring.errors import FeatureServiceNotFound, FeatureStoreError, RegistryUnreachable, ServingError, StorageError


@contextlib.contextmanager
def failing_in_one_line() -> Iterator[None]:
    """Raise a ServingError as a dg.Failure with the same message. Only outages may be retried."""
    try:
        yield
    except ServingError as error:
        raise dg.Failure(description=str(error), allow_retries=is_outage(error)) from None


def is_outage(error: ServingError) -> bool:
    """Whether the same step may succeed later without a change of request, model or settings."""
    outages = RegistryUnreachable | FeatureStoreError | StorageError
    return isinstance(error, outages) and not isinstance(error, FeatureServiceNotFound)
