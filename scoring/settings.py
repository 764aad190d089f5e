"""The settings: read once from the environment at start, passed on as a value, never read again."""

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from scoring.errors import SettingsError, without_secrets
from scoring.files.location import ALLOWED, Location
from scoring.secret import Secret

MissingFeaturesPolicy = Literal["exclude", "reject", "impute"]
ModelFormat = Literal["skops", "cloudpickle", "pickle"]
Rescore = Literal["newest", "all"]
BatchEngine = Literal["local", "spark"]
LogLevel = Literal["debug", "info", "warning", "error"]
# What Dagster takes for an owner (1.13).
OWNER = r"^(team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,})$"

PREFIX = "SERVING_"
# Variables of the tools themselves, read under the names that their own users know.
TOOL_VARIABLES = {
    "mlflow_tracking_uri": "MLFLOW_TRACKING_URI",
    "mlflow_registry_uri": "MLFLOW_REGISTRY_URI",
    "otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
}

SKLEARN_TYPES = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn._loss.link.IdentityLink",
    "sklearn._loss.link.Interval",
    "sklearn._loss.link.LogitLink",
    "sklearn._loss.link.MultinomialLogit",
    "sklearn._loss.link.LogLink",
    "sklearn._loss.loss.HalfSquaredError",
    "sklearn._loss.loss.HalfBinomialLoss",
    "sklearn._loss.loss.HalfMultinomialLoss",
    "sklearn._loss.loss.HalfPoissonLoss",
    "sklearn._loss.loss.HalfGammaLoss",
    "sklearn._loss.loss.AbsoluteError",
    "sklearn._loss.loss.PinballLoss",
    "sklearn.compose._column_transformer._RemainderColsList",
    "numpy.dtype",
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, with its default. Make one with `Settings.from_environment`.

    A field `x` is read from SERVING_X, but for those in TOOL_VARIABLES. Relative paths: from the working directory.
    """

    model_name: Annotated[str, Meta(min_length=1)]
    """Registered model to serve. Required: nothing can be served without it."""

    model_alias: Annotated[str, Meta(min_length=1)] = "champion"
    """Alias of the registered model that both ways of serving follow."""

    mlflow_tracking_uri: Annotated[str, Meta(min_length=1)] = "sqlite:///mlflow.db"
    """MLflow tracking server (`http(s)://…`) or database that holds runs and artifacts."""

    mlflow_registry_uri: str | None = None
    """MLflow model registry, where it is not the tracking server."""

    feature_repo: Path = Path("feature_repo")
    """Folder of the Feast repository: the definitions and feature_store.yaml."""

    feature_store_yaml: Annotated[str, Meta(min_length=1)] = "feature_store.yaml"
    """Name, inside the feature repository, of the Feast configuration to use."""

    feature_service: str | None = None
    """Feature service for model versions without the tag `feast.feature_service`. None: such versions are refused."""

    request_inputs: tuple[str, ...] = ()
    """Model inputs that come with the request instead of the feature store, for versions without the tag
    `serving.request_inputs`. Comma-separated."""

    output_column: Annotated[int, Meta(ge=0)] | None = None
    """Which column of the model's output is the prediction, where it has several (predict_proba), for versions without
    the tag `serving.output_column`. Counted from 0."""

    missing_features: MissingFeaturesPolicy = "exclude"
    """What happens to an entity row with a missing, stale or null feature: `exclude` it with a reason, `reject` the
    whole request, or `impute` what `impute_values` declares."""

    impute_values: dict[str, float | int | bool | str | None] = {}
    """JSON object, model input → value to put in its place under policy `impute`. null leaves it to the model's own
    imputer. An input that is not named here is not imputed: its row is excluded."""

    model_formats: tuple[ModelFormat, ...] = ("skops",)
    """Serialization formats that may be loaded. Pickle and cloudpickle run whatever code the file holds.
    Comma-separated."""

    skops_trusted_types: tuple[str, ...] = SKLEARN_TYPES
    """Types beyond the defaults of skops that a model file may hold. The list in the model's own file is not consulted.
    Comma-separated."""

    max_model_bytes: Annotated[int, Meta(ge=1)] = 1 << 30
    """Largest size of one version's files together, in bytes. Larger ones are not fetched."""

    max_load_memory_bytes: Annotated[int, Meta(ge=1 << 20)] = 2 << 30
    """Address space, in bytes, that a version may take while it is loaded and predicts on trial, beyond what the
    libraries take."""

    load_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    """Seconds that a version may take to load and predict on trial. The registry's answers may take as long, and its
    files one second more for each megabyte."""

    batch_requests: Location = Location("batch_requests")
    """Folder of batch request files (`<request>.csv`, `.tsv` or `.parquet`), or `s3://bucket/prefix`."""

    artifacts: Location = Location("artifacts")
    """Folder, or `s3://bucket/prefix`, of registered_model_version.json and `<request>/batch_input.parquet`,
    `<request>/batch_output.parquet`, `<request>/manifest.json`."""

    batch_engine: BatchEngine = "local"
    """What joins and scores batch requests: `local`, the run's own process, or `spark` (docs/scaling.md)."""

    spark_master: Annotated[str, Meta(min_length=1)] = "local[*]"
    """Where Spark runs, with batch engine `spark`: this machine (`local[*]`), or `k8s://…`, `spark://…`, `yarn`."""

    spark_conf: dict[str, str] = {}
    """JSON object of further Spark configuration, as {"spark.driver.memory": "8g"}."""

    spark_rows_a_part: Annotated[int, Meta(ge=1)] = 1_000_000
    """Rows in each file that Spark writes: the work of one task, which holds a part of them in memory at a time."""

    rescore: Rescore = "newest"
    """Which batch requests a new model version scores again: the `newest`, or `all` whose files are still there."""

    batch_owners: tuple[Annotated[str, Meta(pattern=OWNER)], ...] = ("team:ml-serving",)
    """Whom Dagit shows as the owners of the assets: `team:name`, or an e-mail address. Comma-separated."""

    max_null_rate: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of a batch request's rows that may lack a feature before Dagit shows a warning."""

    max_stale_rate: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Share of a batch request's rows whose feature may be past its time to live before Dagit shows a warning."""

    max_prediction_drift: Annotated[float, Meta(gt=0)] = 0.25
    """Population stability index of the predictions against the previous ones above which Dagit shows a warning."""

    max_source_age_s: Annotated[float, Meta(gt=0)] | None = None
    """Seconds since the newest event of a feature view's source above which Dagit shows a warning. None: the view's
    time to live."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """Address that the API listens on. Loopback unless set otherwise."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 8172
    """Port that the API listens on."""

    deadline_s: Annotated[float, Meta(gt=0, le=60)] = 0.3
    """Seconds that one request may take from its body's arrival to its answer."""

    max_entities: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """Most entities that one request may ask for."""

    max_body_bytes: Annotated[int, Meta(ge=64)] = 1_048_576
    """Largest request body, in bytes."""

    body_timeout_s: Annotated[float, Meta(gt=0, le=300)] = 5.0
    """Seconds that the body of one request may take to arrive."""

    max_concurrent_requests: Annotated[int, Meta(ge=1, le=256)] = 2
    """Threads that look up and predict. Requests that wait at the same time are worked on together by one of them; the
    others step in when it takes longer than 10 ms and than usual. More help only where the feature store is far
    away."""

    max_waiting_requests: Annotated[int, Meta(ge=0, le=10_000)] = 128
    """Requests that may be unfinished beyond the number of those threads; further ones are answered 503 at once."""

    drain_s: Annotated[float, Meta(ge=0, le=300)] = 5.0
    """Seconds from SIGTERM, after which /ready answers 503, to the end of accepting connections: as long as a load
    balancer needs to notice."""

    api_keys: tuple[Secret, ...] = ()
    """Keys that may ask for scores, each at least 16 characters, sent as `Authorization: Bearer <key>`. Several for
    rotation. Required where the API listens beyond loopback. Comma-separated."""

    api_keys_file: Path | None = None
    """File with further such keys, one a line; read at start."""

    allow_anonymous: bool = False
    """`true` lets the API listen beyond loopback without keys: whoever reaches the port may ask for scores."""

    log_level: LogLevel = "info"
    """Least serious level of the API's log. Each request is one line at `info`; health checks are at `debug`."""

    otlp_endpoint: str | None = None
    """OpenTelemetry collector (`http://host:4318`) that gets a trace of each scoring request. None: no traces."""

    webhook_secret: Secret | None = None
    """Secret of an MLflow registry webhook to `POST /webhooks/mlflow`, which lets the API look at the alias at once. At
    least 16 characters. None: there is no such address."""

    poll_interval_s: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0
    """Seconds between two looks of the API at the alias; also how old its copy of the Feast registry may get."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read every setting from `environment` (as os.environ).

        Raises:
            SettingsError: a value does not fit, a required one is missing, or a SERVING_ variable is unknown. The text
                names the variable and what is allowed.
        """
        variables = variable_names()
        unknown = [name for name in environment if name.startswith(PREFIX) and name not in variables.values()]
        if unknown:
            raise SettingsError(unknown[0], _unknown_problem(unknown[0], list(variables.values())))
        hints = typing.get_type_hints(cls, include_extras=True)
        values: dict[str, Any] = {}
        for field, variable in variables.items():
            text = environment.get(variable, "").strip()
            if text:
                values[field] = _parse(variable, text, hints[field])
        if "model_name" not in values:
            raise SettingsError(
                variables["model_name"], "is not set: name the registered model to serve, as in my_ranker."
            )
        return cls(**values)

    def __repr__(self) -> str:
        """Without what only its reader may know: passwords in addresses, and the values of SERVING_SPARK_CONF."""
        hidden = msgspec.structs.asdict(self) | {"spark_conf": dict.fromkeys(self.spark_conf, "***")}
        told = {name: without_secrets(value) if isinstance(value, str) else value for name, value in hidden.items()}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in told.items())})"

    @property
    def registry_uri(self) -> str:
        """URI of the model registry: its own setting, else the tracking server's."""
        return self.mlflow_registry_uri or self.mlflow_tracking_uri


def variable_names() -> dict[str, str]:
    """Field of `Settings` → the environment variable that it is read from."""
    return {field: TOOL_VARIABLES.get(field, PREFIX + field.upper()) for field in Settings.__struct_fields__}


def _parse(variable: str, text: str, hint: Any) -> Any:
    plain = _without_none(hint)
    try:
        if _bare(plain) is Path:
            return Path(text)
        if typing.get_origin(_bare(plain)) is tuple:
            items = tuple(item.strip() for item in text.split(",") if item.strip())
            return msgspec.convert(items, plain, dec_hook=_own_type)
        if typing.get_origin(_bare(plain)) is dict:
            return msgspec.json.decode(text, type=plain)
        return msgspec.convert(text, plain, strict=False, dec_hook=_own_type)
    except msgspec.MsgspecError as error:
        shown = "holds what" if Secret in (plain, *typing.get_args(plain)) else f"is {without_secrets(text)!r}, which"
        raise SettingsError(variable, f"{shown} is not allowed: {_allowed(plain)} ({error}).") from None


def _own_type(kind: type, text: str) -> Any:
    return kind(text)


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(option for option in typing.get_args(hint) if option is not type(None))
    return hint


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _allowed(hint: Any) -> str:
    bare = _bare(hint)
    if typing.get_origin(bare) is tuple:
        return "a comma-separated list of " + _allowed(typing.get_args(bare)[0])
    if typing.get_origin(bare) is Literal:
        return " | ".join(str(option) for option in typing.get_args(bare))
    if typing.get_origin(bare) is dict:
        return 'a JSON object such as {"input": 0.5} is'
    if bare is Location:
        return f"{ALLOWED} is"
    return {int: "a whole number", float: "a number", str: "a text", Secret: "keys"}.get(
        bare, str(bare)
    ) + " within its bounds is"


def _unknown_problem(variable: str, known: list[str]) -> str:
    near = difflib.get_close_matches(variable, known, n=1)
    return "is not a setting" + (f": did you mean {near[0]}?" if near else "; docs/settings.md lists them all.")
