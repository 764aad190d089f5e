"""Record problems of single requests in a run over many, so that the others are scored."""

import contextlib
from collections.abc import Iterator

import dagster as dg

from scoring.errors import (
    BatchRequestError,
    EntityRowsError,
    FeaturesRejected,
    FeatureStoreError,
    PredictionFailed,
    ServingError,
    StorageError,
    UnusableFeature,
    listed,
)
from scoring.files.location import Location
from scoring.foreign_errors import first_line
from serving_assets.assets.checks import NotPublished
from serving_assets.assets.display import markdown_table
from serving_assets.assets.failures import may_succeed_later
from serving_assets.records.observations import refused_event

# Errors of one request that persist until something changes.
OF_ONE_REQUEST = (
    BatchRequestError,
    EntityRowsError,
    FeaturesRejected,
    NotPublished,
    PredictionFailed,
    UnusableFeature,
)
# A file exists at the path of a result folder, or a folder at the path of a result file.
PATH_CONFLICTS = (FileExistsError, IsADirectoryError, NotADirectoryError)


class RequestProblems:
    """Decides whether an error belongs to one request or ends the whole run.

    An error that is not known to affect all requests belongs to its request, so that no request prevents the others
    from being scored. If a store fails for a single request, that request is refused and retried later. If a store
    fails twice in a row, or for all requests, it is an outage and ends the run.
    """

    def __init__(self, context: dg.AssetExecutionContext, folder: Location) -> None:
        """Initialize without problems. `folder` is the request folder."""
        self.failed: dict[str, ServingError] = {}
        self._context = context
        self._folder = folder
        self._succeeded = False
        self._doubtful: tuple[str, ServingError] | None = None

    @contextlib.contextmanager
    def of(self, key: str) -> Iterator[None]:
        """Handle errors of one request.

        Raises:
            ServingError: the error affects all requests.
        """
        try:
            yield
        except OF_ONE_REQUEST as error:
            self._refuse(key, error, retried=isinstance(error, PredictionFailed) and error.transient)
        except StorageError as error:
            if isinstance(error.__cause__, PATH_CONFLICTS):
                problem = f"{error}: a file or folder at this path conflicts with its results: move it."
                self._refuse(key, BatchRequestError(str(self._folder / key), problem))
            else:
                self._doubt(key, error)
        except FeatureStoreError as error:
            if not may_succeed_later(error):
                raise
            self._doubt(key, error)
        except ServingError:
            raise
        except Exception as error:
            self._context.log.exception(f"Request {key} raised an unexpected error.")
            problem = (
                f"{type(error).__name__} was raised ({first_line(error, 120)}): see the stack trace in the run's log."
            )
            # The cause is unknown, so the request is retried.
            self._refuse(key, BatchRequestError(str(self._folder / key), problem), retried=True)
        else:
            self._succeeded = True
            self._settle()

    def fail(self) -> None:
        """Raise unless every request was scored.

        Raises:
            dg.Failure: some requests can't be scored. Its one-line message names them and the reasons.
            ServingError: a store failed for the last request, and none was scored.
        """
        if self._doubtful and not self._succeeded:
            raise self._doubtful[1]
        self._settle()
        if not self.failed:
            return
        failed, total = self.failed, len(self._context.partition_keys)
        message = str(next(iter(failed.values())))
        if total > 1:
            named = listed([f"{key}: {str(error).rstrip('.')}" for key, error in failed.items()], separator="; ")
            others = " The sensor score_the_others starts a run for the other requests." if len(failed) < total else ""
            message = f"{len(failed)} of the run's {total} requests can't be scored. {named}.{others}"
        rows = [{"request": key, "why": str(error)} for key, error in failed.items()]
        refused = dg.MetadataValue.md(markdown_table(["request", "why"], rows, cell=300))
        raise dg.Failure(message, {"refused": refused}, allow_retries=False)

    def _refuse(self, key: str, error: ServingError, *, retried: bool = False) -> None:
        self.failed[key] = error
        self._context.log_event(refused_event(key, str(error), retried=retried))

    def _doubt(self, key: str, error: ServingError) -> None:
        if self._doubtful:
            raise error
        self._doubtful = key, error

    def _settle(self) -> None:
        if self._doubtful:
            self._refuse(*self._doubtful, retried=True)
            self._doubtful = None
