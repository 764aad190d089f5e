"""What can go wrong between a registered model, its features and a prediction.

Each error takes facts and makes one sentence that says what to do. None of them carries feature values.

    ServingError
    ├── SettingsError               a setting has a wrong value, or none where one is needed
    ├── EngineError                 the batch engine can't work on this machine
    ├── RegistryError               the MLflow registry can't say which version serves
    │   ├── RegistryUnreachable
    │   ├── RegistryTooSlow
    │   ├── ModelNotRegistered
    │   ├── AliasNotSet
    │   └── VersionNotFound
    ├── ModelRefused                this version can't serve, and another might
    │   └── MissingFeatures
    ├── FeatureStoreError           the Feast registry, offline store or online store failed
    │   ├── UnusableFeature         it answered, with a value that is not what it is declared to be
    │   ├── FunctionNotRunnable     an on-demand view's function can't be run
    │   └── FeatureServiceNotFound
    ├── EntityRowsError             entity keys or request-time inputs that no store could look up
    ├── BatchRequestError           a batch request file that can't be scored
    ├── StorageError                a folder or an object store can't be read or written
    │   ├── StillWritten
    │   └── NoRoom                  this machine has no room for a model version's files
    ├── FeaturesRejected            policy `reject`: at least one entity row lacks a usable feature
    └── PredictionFailed            the model raised, or answered something else than one number a row
"""

import errno
import os
import re
from collections.abc import Iterator, Sequence

READING = "reading the online store"
"""What a `FeatureStoreError` of a look-up was doing."""


class ServingError(Exception):
    """Base of all errors that this project raises on purpose; its text is one line for a person to act on."""

    @property
    def public(self) -> str:
        """The same for whoever asks /ready: without addresses, and without the words of another server."""
        return str(self)


class SettingsError(ServingError):
    """A setting is missing or wrong.

    `variable` is the environment variable, `problem` says what is wrong and which values are allowed.
    """

    def __init__(self, variable: str, problem: str) -> None:
        self.variable = variable
        super().__init__(f"{variable} {problem}")


class EngineError(ServingError):
    """The batch engine that the settings name can't work here, or lost its workers; the text says what to do."""


class RegistryError(ServingError):
    """The MLflow registry can't say which version serves."""


class RegistryUnreachable(RegistryError):
    """No usable answer from the registry; `cause` is the client's own last words, shortened."""

    def __init__(self, uri: str, cause: BaseException | str) -> None:
        self.uri = without_secrets(uri)
        super().__init__(
            f"The MLflow registry at {self.uri} gave no answer ({first_line(cause)}): "
            "check MLFLOW_TRACKING_URI and that the server is up."
        )
        self._why = _public(cause)

    @property
    def public(self) -> str:
        """See `ServingError.public`."""
        return f"The MLflow registry gave no answer ({self._why})."


class RegistryTooSlow(RegistryError):
    """The registry, or where it keeps its files, had not answered completely in time; `limit_s` in seconds."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"The MLflow registry's answer was not complete within SERVING_LOAD_TIMEOUT_S={limit_s:g} seconds (files "
            "have a second more for each megabyte): look at the server and its artifact store."
        )


class ModelNotRegistered(RegistryError):
    """There is no registered model of this name."""

    def __init__(self, model: str, uri: str) -> None:
        self.model = model
        super().__init__(
            f"No model named {model!r} is registered in {without_secrets(uri)}: "
            "register one, or set SERVING_MODEL_NAME and MLFLOW_TRACKING_URI to where it is."
        )

    @property
    def public(self) -> str:
        """See `ServingError.public`."""
        return f"No model named {self.model!r} is registered: the log says where it was looked for."


class AliasNotSet(RegistryError):
    """The registered model has no version under this alias."""

    def __init__(self, model: str, alias: str) -> None:
        self.model = model
        self.alias = alias
        super().__init__(
            f"Registered model {model!r} has no alias {alias!r}: set it on a version "
            f"(MlflowClient().set_registered_model_alias({model!r}, {alias!r}, version)), or set SERVING_MODEL_ALIAS."
        )


class VersionNotFound(RegistryError):
    """The registered model has no such version."""

    def __init__(self, model: str, version: int) -> None:
        self.model = model
        self.version = version
        super().__init__(
            f"Registered model {model!r} has no version {version}: pin one that exists, or none to follow the alias."
        )


class ModelRefused(ServingError):
    """This model version can't be served as it is; `reason` says why and what to do."""

    def __init__(self, model: str, reason: str) -> None:
        self.model = model
        self.reason = reason
        super().__init__(f"Model version {model} was refused: {reason}")


class MissingFeatures(ModelRefused):
    """Inputs of the model's signature that its feature service does not serve."""

    def __init__(self, model: str, service: str, missing: Sequence[str], served: Sequence[str]) -> None:
        self.service = service
        self.missing = tuple(missing)
        super().__init__(
            model,
            f"feature service {service!r} does not serve its inputs {', '.join(missing)} "
            f"(it serves {', '.join(served) or 'nothing'}). Add them to the service, name another service by the "
            "version's tag feast.feature_service, or declare them in SERVING_REQUEST_INPUTS.",
        )


class FeatureStoreError(ServingError):
    """Feast failed: `doing` says at what, `cause` is its own last words, shortened."""

    def __init__(self, doing: str, cause: BaseException | str) -> None:
        self.doing = doing
        if isinstance(cause, BaseException) and isinstance(cause.__cause__, ImportError):
            cause = cause.__cause__  # Feast names the module that it could not import; its cause says why
        super().__init__(f"The feature store failed while {doing}: {first_line(cause)}")
        self._why = _public(cause)

    @property
    def public(self) -> str:
        """See `ServingError.public`."""
        return f"The feature store failed while {self.doing}: {self._why}"


class UnusableFeature(FeatureStoreError):
    """The store answered, with a value for some entity that can't be used as what it is declared to be.

    So its text never quotes an exception, which would quote the value.
    """


class FunctionNotRunnable(FeatureStoreError):
    """The function of an on-demand view can't be run as it came from the Feast registry."""

    def __init__(self, view: str, cause: BaseException) -> None:
        super().__init__(f"trying the function of on-demand view {view!r}", cause)
        why = f"{type(cause).__name__}: {first_line(cause)}"
        self.args = (f"The function of on-demand view {view!r} can't be run: {why}",)

    @property
    def public(self) -> str:
        """See `ServingError.public`. It was called with made-up values: there is nothing in it from a request."""
        return str(self)


class FeatureServiceNotFound(FeatureStoreError):
    """The Feast registry has no feature service of this name."""

    def __init__(self, service: str, known: Sequence[str]) -> None:
        self.service = service
        super().__init__(
            f"looking up feature service {service!r}",
            f"the registry has {', '.join(known) or 'none'}. Run `feast apply` (or materialize the asset "
            "feast_registry), or correct the version's tag feast.feature_service.",
        )


class EntityRowsError(ServingError):
    """Entity keys or request-time inputs that can't be looked up; `column` and `row` (0-based) say where."""

    def __init__(self, column: str, row: int | None, problem: str) -> None:
        self.column = column
        self.row = row
        place = f"{column!r}" if row is None else f"{column!r}, row {row}"
        super().__init__(f"Entity rows: {place}: {problem}")


class BatchRequestError(ServingError):
    """A batch request can't be scored. `row` is the 1-based data row of the first offence (a header is not counted)."""

    def __init__(self, file: str, problem: str, column: str | None = None, row: int | None = None) -> None:
        self.file = file
        self.column = column
        self.row = row
        place = "".join((f", column {column!r}" if column else "", f", row {row}" if row else ""))
        super().__init__(f"Batch request {file}{place}: {problem}")


class StorageError(ServingError):
    """A folder or an object store failed: `doing` says at what, `cause` is its own last words, shortened."""

    def __init__(self, doing: str, place: str, cause: BaseException | str) -> None:
        self.place = place
        super().__init__(f"{doing[0].upper()}{doing[1:]} {place} failed: {first_line(cause)}")


class StillWritten(StorageError):
    """A file had other content at each look: somebody writes to it."""

    def __init__(self, place: str) -> None:
        super().__init__("copying", place, "it kept changing: somebody is writing to it")


class NoRoom(StorageError):
    """This machine takes no more files of ours in `place`; it says nothing about the model version that they are of."""

    def __init__(self, place: str, why: str) -> None:
        super().__init__(
            "keeping a model version's files in", place, f"{why}. Make room there, or set TMPDIR to another folder."
        )


class FeaturesRejected(ServingError):
    """Policy `reject`: entity rows without usable features, as (what names the row, reason) pairs."""

    shown = 10

    def __init__(self, rows: Sequence[tuple[str, str]], total: int) -> None:
        self.rows = tuple(rows)
        self.total = total
        listed = "; ".join(f"{row}: {reason}" for row, reason in self.rows[: self.shown])
        more = f"; and {total - self.shown} more" if total > self.shown else ""
        super().__init__(
            f"{total} entity rows lack usable features and SERVING_MISSING_FEATURES is reject ({listed}{more})."
        )


class PredictionFailed(ServingError):
    """The model raised on complete feature vectors, or gave something else than one number a row.

    `passing`: it may be this machine's fault, so that the same rows are worth another try.
    """

    def __init__(self, model: str, problem: str, *, passing: bool = False) -> None:
        self.model = model
        self.problem = problem
        self.passing = passing
        super().__init__(f"Model version {model} failed to predict: {problem}")


def first_line(cause: BaseException | str, limit: int = 200) -> str:
    """The first line of an error's text, at most `limit` characters: client errors embed whole frames and traces.

    User names, passwords and queries in addresses are cut out.
    """
    text = str(cause).strip() or type(cause).__name__
    line = re.sub(r"(?<!\S)\S*://\S*", lambda address: without_secrets(address[0]), text.splitlines()[0])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _public(cause: BaseException | str) -> str:
    return cause if isinstance(cause, str) else f"{safe_description(cause)}; the log says more"


def without_secrets(uri: str) -> str:
    """The address without user, password and query, fit for a log or an error.

    Whatever stands before the last @ goes, also where a password holds a / that should have been encoded.
    """
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"


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


def safe_description(error: BaseException) -> str:
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
