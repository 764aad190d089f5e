"""Convert this project's errors to one-line Dagster failures."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from scoring.errors import (
    FeatureServiceNotFound,
    FeatureStoreError,
    RegistryUnreachable,
    ServingError,
    SettingsError,
    StorageError,
)


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


def unset_in_run(variable: str) -> SettingsError:
    """Return the error for a setting that put an asset into the graph, and that the run does not have."""
    return SettingsError(variable, "is not set in this run, but was when the code location was loaded.")
