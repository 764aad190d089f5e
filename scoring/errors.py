"""Errors between a registered model, its features and a prediction.

Most errors build their message from their arguments: it names the fault and, where there is one, the remedy. No error
contains feature values.

    ServingError
    ├── ArgumentError               an argument of a command is wrong or missing
    │   └── SettingsError           a setting is wrong or missing
    ├── EngineError                 the batch engine can't work on this machine
    ├── RegistryError               the MLflow registry can't resolve the version to serve
    │   ├── RegistryUnreachable
    │   ├── RegistryTooSlow
    │   ├── ModelNotRegistered
    │   ├── AliasNotSet
    │   ├── NoEarlierVersion
    │   └── VersionNotFound
    ├── ModelRefused                this version can't serve; another might
    │   └── MissingFeatures
    ├── FeatureStoreError           the Feast registry, offline store or online store failed
    │   ├── UnusableFeature         it returned a value that does not fit the declared type
    │   ├── FunctionNotRunnable     the function of an on-demand view can't be run
    │   ├── UnreadableSource        files of a feature source can't be read as its views declare them
    │   ├── NotMaterialized         some feature views could not be materialized
    │   └── FeatureServiceNotFound
    ├── EntityRowsError             entity keys or request-time inputs that can't be looked up
    ├── BatchRequestError           a batch request file that can't be scored
    ├── StorageError                a folder or an object store can't be read or written
    │   ├── StillWritten
    │   └── NoRoom                  this machine does not have enough disk space for a model version's files
    ├── PromotionRefused            the comparison of the challenger does not allow its promotion
    ├── FeaturesRejected            policy `reject`: an entity row lacks a usable feature
    └── PredictionFailed            the model raised, or did not return its outputs for each row
"""

from collections.abc import Mapping, Sequence

from scoring.foreign_errors import first_line, public_description, without_secrets

READING = "reading the online store"
"""Name of the lookup operation in `FeatureStoreError`."""


class ServingError(Exception):
    """Base of all errors that this project raises on purpose. The message is one actionable line.

    `public` is the message for callers of /ready, without addresses and without other servers' messages.
    """

    def __init__(self, message: str, public: str | None = None) -> None:
        self.public = message if public is None else public
        super().__init__(message)


class ArgumentError(ServingError):
    """An argument of a command is wrong or missing."""


class SettingsError(ArgumentError):
    """A setting is wrong or missing; `problem` continues a sentence that begins with the variable."""

    def __init__(self, variable: str, problem: str) -> None:
        super().__init__(f"{variable} {problem}")


class EngineError(ServingError):
    """The configured batch engine can't run on this machine, or lost its workers."""


class RegistryError(ServingError):
    """The MLflow registry can't resolve the version to serve."""


class RegistryUnreachable(RegistryError):
    """The registry returned no usable response; `cause` is the client's error."""

    def __init__(self, uri: str, cause: BaseException | str) -> None:
        super().__init__(
            f"The MLflow registry at {without_secrets(uri)} did not respond ({first_line(cause)}): "
            "check MLFLOW_TRACKING_URI and that the server is up.",
            f"The MLflow registry did not respond ({public_description(cause)}).",
        )


class RegistryTooSlow(RegistryError):
    """The registry or its artifact store did not respond completely in time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            f"The MLflow registry's response was not complete within SERVING_LOAD_TIMEOUT_S={limit_s:g} seconds (files "
            "have one more second per megabyte): check the server and its artifact store."
        )


class ModelNotRegistered(RegistryError):
    """The registry has no model of this name."""

    def __init__(self, model: str, uri: str) -> None:
        super().__init__(
            f"No model named {model!r} is registered in {without_secrets(uri)}: "
            "register one, or correct SERVING_MODEL_NAME or MLFLOW_TRACKING_URI.",
            f"No model named {model!r} is registered: the log names the registry.",
        )


class AliasNotSet(RegistryError):
    """The registered model has no version under this alias."""

    def __init__(self, model: str, alias: str) -> None:
        super().__init__(
            f"Registered model {model!r} has no alias {alias!r}: set it on a version "
            f"(MlflowClient().set_registered_model_alias({model!r}, {alias!r}, version)), or set SERVING_MODEL_ALIAS."
        )


class NoEarlierVersion(RegistryError):
    """It is not recorded which version the alias named before; `recorded` are those that it named, the newest last."""

    def __init__(self, model: str, alias: str, current: int, recorded: Sequence[int]) -> None:
        why = "its earlier versions are not recorded"
        if recorded and recorded[-1] != current:
            why = f"it was moved by other means since it was set on version {recorded[-1]}"
        super().__init__(
            f"Alias {alias!r} of model {model!r} names version {current}, and {why}: name the version to return to, "
            "with `model-serving promote N`."
        )


class VersionNotFound(RegistryError):
    """The registered model has no such version."""

    def __init__(self, model: str, version: int) -> None:
        super().__init__(
            f"Registered model {model!r} has no version {version}: choose an existing one, or omit it to use the one "
            "under the alias."
        )


class ModelRefused(ServingError):
    """This model version can't serve; `reason` states the cause and the remedy."""

    def __init__(self, model: str, reason: str) -> None:
        self.reason = " ".join(reason.splitlines())  # names in a model may have several lines
        super().__init__(f"Model version {model} was refused: {self.reason}")


class MissingFeatures(ModelRefused):
    """The feature service, or without one the feature views, do not have some inputs of the model's signature."""

    def __init__(self, model: str, service: str | None, missing: Sequence[str], served: Sequence[str]) -> None:
        if service is None:
            problem = (
                f"no feature view has its inputs {', '.join(missing)} (the views have "
                f"{', '.join(served) or 'nothing: run `feast apply`'}). Add them to a view"
            )
        else:
            problem = (
                f"feature service {service!r} does not serve its inputs {', '.join(missing)} (it serves "
                f"{', '.join(served) or 'nothing'}). Add them to the service, name another service in the version's "
                "tag feast.feature_service"
            )
        super().__init__(
            model,
            f"{problem}, or, if they come with the request, declare them in its tag serving.request_inputs or in "
            "SERVING_REQUEST_INPUTS.",
        )


class FeatureStoreError(ServingError):
    """Feast failed while `doing` something; `cause` is its error."""

    def __init__(self, doing: str, cause: BaseException | str) -> None:
        if isinstance(cause, BaseException) and isinstance(cause.__cause__, ImportError):
            cause = cause.__cause__  # Feast names the module that it could not import; the cause has the reason
        failed = f"The feature store failed while {doing}"
        super().__init__(f"{failed}: {first_line(cause)}", f"{failed}: {public_description(cause)}")


class UnusableFeature(FeatureStoreError):
    """A value does not fit the declared type. No exception is quoted, because its message may contain the value."""


class FunctionNotRunnable(FeatureStoreError):
    """The function of an on-demand view, as stored in the Feast registry, can't be run."""

    def __init__(self, view: str, cause: BaseException) -> None:
        # The whole message is public, because the function was called with made-up values.
        why = f"{type(cause).__name__}: {first_line(cause)}"
        ServingError.__init__(self, f"The function of on-demand view {view!r} can't be run: {why}")


class UnreadableSource(FeatureStoreError):
    """Files of a feature source can't be read as its views declare them; `problem` names the file and the remedy."""

    def __init__(self, source: str, problem: str) -> None:
        ServingError.__init__(
            self, f"Feature source {source!r}: {problem}", f"Feature source {source!r} can't be read."
        )


class NotMaterialized(FeatureStoreError):
    """Some feature views could not be materialized; `causes` maps each to its error. All others were materialized."""

    def __init__(self, causes: Mapping[str, BaseException | str]) -> None:
        failed = "The feature store failed while materializing the online store"
        whys = [str(cause) if isinstance(cause, ServingError) else first_line(cause) for cause in causes.values()]
        listed = [f"Feature view {view!r}: {why.rstrip('.')}." for view, why in zip(causes, whys, strict=True)]
        ServingError.__init__(
            self, f"{failed}: {' '.join(listed)}", f"{failed} of {', '.join(causes)}; the log has details."
        )


class FeatureServiceNotFound(FeatureStoreError):
    """The Feast registry has no feature service of this name."""

    def __init__(self, service: str, known: Sequence[str]) -> None:
        super().__init__(
            f"looking up feature service {service!r}",
            f"the registry has {', '.join(known) or 'none'}. Run `feast apply` (or materialize the asset "
            "feast_registry), or correct the version's tag feast.feature_service.",
        )


class EntityRowsError(ServingError):
    """Entity keys or request-time inputs can't be looked up."""

    def __init__(self, column: str, problem: str) -> None:
        super().__init__(f"Entity rows: {column!r}: {problem}")


class BatchRequestError(ServingError):
    """A batch request can't be scored. `row` is the first bad data row, counted from 1 without the header."""

    def __init__(self, file: str, problem: str, column: str | None = None, row: int | None = None) -> None:
        place = "".join((f", column {column!r}" if column else "", f", row {row}" if row else ""))
        super().__init__(f"Batch request {file}{place}: {problem}")


class StorageError(ServingError):
    """A folder or an object store failed while `doing` something; `cause` is its error."""

    def __init__(self, doing: str, place: str, cause: BaseException | str) -> None:
        super().__init__(f"{doing[0].upper()}{doing[1:]} {place} failed: {first_line(cause)}")


class StillWritten(StorageError):
    """The content of a file changed at every attempt to read it."""

    def __init__(self, place: str) -> None:
        super().__init__(
            "copying", place, "it kept changing: another process is writing to it. Try again when it is complete"
        )


class NoRoom(StorageError):
    """There is not enough disk space in `place` for a model version's files. The version itself may be valid."""

    def __init__(self, place: str, why: str) -> None:
        problem = f"{why}. Free disk space there, or set TMPDIR to another folder."
        super().__init__("keeping a model version's files in", place, problem)


class PromotionRefused(ServingError):
    """The comparison of the challenger `model` (`name/version`) does not allow its promotion."""

    def __init__(self, model: str, problem: str) -> None:
        super().__init__(
            f"{model} is not promoted: {problem}. Promote it anyway with --force (in Dagster, force: true)."
        )


class FeaturesRejected(ServingError):
    """Policy `reject`: `rows` are (name of the row, reason) pairs of entity rows without usable features."""

    max_listed = 10

    def __init__(self, rows: Sequence[tuple[str, str]], total: int) -> None:
        named = listed([f"{row}: {reason}" for row, reason in rows], self.max_listed, "; ", total)
        rows_lack = "1 entity row lacks" if total == 1 else f"{total} entity rows lack"
        super().__init__(f"{rows_lack} usable features, and SERVING_MISSING_FEATURES is reject ({named}).")


class PredictionFailed(ServingError):
    """The model raised on complete feature vectors, or what it returned is not a value of each output for each row.

    If `transient`, this machine may be the cause, and another attempt with the same rows may succeed.
    """

    def __init__(self, model: str, problem: str, *, transient: bool = False) -> None:
        self.model = model
        self.problem = problem
        self.transient = transient
        super().__init__(f"Model version {model} failed to predict: {problem}")


def listed(items: Sequence[str], limit: int = 10, separator: str = ", ", total: int | None = None) -> str:
    """Join the first items, and add how many more there are; `total` counts those that `items` lacks, too."""
    more = (len(items) if total is None else total) - limit
    return separator.join(items[:limit]) + (f"{separator.strip(', ')} and {more} more" if more > 0 else "")
