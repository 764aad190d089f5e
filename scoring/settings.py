"""Reads the settings from the environment once, at startup."""

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from scoring.errors import SettingsError
from scoring.files.location import ALLOWED, Location
from scoring.foreign_errors import without_secrets
from scoring.secret import Secret

MissingFeaturesPolicy = Literal["exclude", "reject", "impute"]
ModelFormat = Literal["skops", "cloudpickle", "pickle", "pyfunc"]
Rescore = Literal["newest", "all"]
Schedule = Literal["hourly_online_store", "daily_everyone", "daily_replay"]
BatchEngine = Literal["local", "spark"]
LogLevel = Literal["debug", "info", "warning", "error"]
# The owners that Dagster 1.13 accepts.
OWNER = r"^(team:.+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,})$"

PREFIX = "SERVING_"
# Variables of other tools, read under those tools' own names.
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
    "sklearn.compose._column_transformer.make_column_selector",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.model_selection._split.KFold",
    "sklearn.model_selection._split.StratifiedKFold",
    "sklearn.metrics._scorer._PassthroughScorer",
    "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
    "sklearn.utils._bunch.Bunch",
    "numpy.dtype",
)
# Within a skops file, their models are in the same data formats as by themselves.
LIBRARY_TYPES = (
    "xgboost.core.Booster",
    "xgboost.sklearn.XGBClassifier",
    "xgboost.sklearn.XGBRegressor",
    "lightgbm.basic.Booster",
    "lightgbm.sklearn.LGBMClassifier",
    "lightgbm.sklearn.LGBMRegressor",
    "collections.OrderedDict",
    "catboost.core.CatBoostClassifier",
    "catboost.core.CatBoostRegressor",
)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Every setting with its default. Create an instance with `Settings.from_environment`.

    A field `x` is read from SERVING_X, except for those in TOOL_VARIABLES. Paths are relative to the working directory.
    """

    model_name: Annotated[str, Meta(min_length=1)]
    """Registered model to serve. Required."""

    model_alias: Annotated[str, Meta(min_length=1)] = "champion"
    """Alias of the registered model that batch and online follow."""

    mlflow_tracking_uri: Annotated[str, Meta(min_length=1)] = "sqlite:///mlflow.db"
    """MLflow tracking server (`http(s)://…`) or database that stores runs and artifacts."""

    mlflow_registry_uri: str | None = None
    """MLflow model registry, if it differs from the tracking server."""

    feature_repo: Path = Path("feature_repo")
    """Folder of the Feast repository: the definitions and feature_store.yaml."""

    feature_store_yaml: Annotated[str, Meta(min_length=1)] = "feature_store.yaml"
    """File name of the Feast configuration to use, inside the feature repository."""

    feature_service: str | None = None
    """Feature service of model versions without the tag `feast.feature_service`. If not set, such versions are
    served only from a repository without feature services, where each input is in exactly one view."""

    request_inputs: tuple[str, ...] = ()
    """Model inputs that come with the request instead of from the feature store, for versions without the tag
    `serving.request_inputs`. Comma-separated."""

    overridable_features: tuple[str, ...] = ()
    """Model inputs from the feature store whose values an online request may override, for versions without the tag
    `serving.overridable`. Comma-separated."""

    output_column: Annotated[int, Meta(ge=0)] | None = None
    """Column of the model's output that is the prediction, counted from 0, if the output has several columns
    (predict_proba). For versions without the tag `serving.output_column`."""

    missing_features: MissingFeaturesPolicy = "exclude"
    """Policy for an entity row with a missing, stale or null feature: `exclude` the row with a reason, `reject` the
    whole request, or `impute` the values of `SERVING_IMPUTE_VALUES`."""

    impute_values: dict[str, float | int | bool | str | None] = {}
    """JSON object, model input → value to use under the policy `impute`. null leaves the value to the model's own
    imputer. Inputs that are not listed are not imputed: their rows are excluded."""

    model_formats: tuple[ModelFormat, ...] = ("skops",)
    """Formats that may be loaded, in addition to the data formats of XGBoost, LightGBM, CatBoost and ONNX. Pickle,
    cloudpickle and pyfunc (models written in Python) execute code from the model's files. Comma-separated."""

    skops_trusted_types: tuple[str, ...] = SKLEARN_TYPES + LIBRARY_TYPES
    """Types that a model file may contain in addition to those that skops trusts by default. The list in the model's
    own files is ignored. Comma-separated."""

    max_model_bytes: Annotated[int, Meta(ge=1)] = 1 << 30
    """Maximum total size of a version's files, in bytes. Larger versions are not downloaded."""

    max_load_memory_bytes: Annotated[int, Meta(ge=1 << 20)] = 2 << 30
    """Address space, in bytes, that a version may use during its trial (loading and predicting), beyond what the
    libraries use."""

    load_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 60.0
    """Seconds that a version may take during its trial (loading and predicting). The registry's responses have the same
    limit; downloads get one more second per megabyte."""

    batch_requests: Location = Location("batch_requests")
    """Folder of batch request files (`<request>.csv`, `.tsv` or `.parquet`), or `s3://bucket/prefix`."""

    artifacts: Location = Location("artifacts")
    """Folder, or `s3://bucket/prefix`, for registered_model_version.json and `<request>/batch_input.parquet`,
    `<request>/batch_output.parquet`, `<request>/manifest.json`."""

    scores_table: Location | None = None
    """Folder, or `s3://bucket/prefix`, of a Delta table that gets the rows of each scored request (docs/tables.md). If
    not set, there is no such table. Requires `requirements/delta.txt`."""

    batch_engine: BatchEngine = "local"
    """Engine that joins and scores batch requests: `local` (in the run's own process) or `spark` (docs/scaling.md)."""

    spark_master: Annotated[str, Meta(min_length=1)] = "local[*]"
    """Spark master for the batch engine `spark`: `local[*]` (this machine), `k8s://…`, `spark://…` or `yarn`."""

    spark_conf: dict[str, str] = {}
    """JSON object of additional Spark configuration, for example {"spark.driver.memory": "8g"}."""

    spark_rows_a_part: Annotated[int, Meta(ge=1)] = 1_000_000
    """Rows per file that Spark writes. One task writes one file and holds a part of its rows in memory at a time."""

    rescore: Rescore = "newest"
    """Batch requests that a new model version scores again: the `newest`, or `all` whose files still exist."""

    batch_owners: tuple[Annotated[str, Meta(pattern=OWNER)], ...] = ("team:ml-serving",)
    """Owners of the assets in Dagit: `team:name`, or an e-mail address. Comma-separated."""

    schedules: tuple[Schedule, ...] = ()
    """Dagster schedules that run without being started in Dagit: `hourly_online_store`, `daily_everyone`,
    `daily_replay`. Comma-separated."""

    max_null_rate: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Fraction of a batch request's rows that may lack a feature. Above it, Dagit shows a warning."""

    max_stale_rate: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Fraction of a batch request's rows that may have a feature past its view's TTL. Above it, Dagit shows a
    warning."""

    max_prediction_drift: Annotated[float, Meta(gt=0)] = 0.25
    """Population stability index of an output relative to previous predictions, or to those of training. Above it,
    Dagit shows a warning."""

    max_feature_drift: Annotated[float, Meta(gt=0)] = 0.25
    """Population stability index of a feature relative to training. Above it, Dagit shows a warning."""

    max_null_increase: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Fraction of rows by which a feature or output may be null more often than in training. Above it, Dagit shows a
    warning."""

    max_new_categories: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Fraction of a feature's or output's values that may be categories which training did not have. Above it, Dagit
    shows a warning."""

    promote_min_rows: Annotated[int, Meta(ge=0)] = 1000
    """Rows that the comparison of the challenger needs before `promote` moves the alias to it (docs/monitoring.md)."""

    promote_max_changed_decisions: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Largest share of changed decisions with which `promote` moves the alias to the challenger."""

    promote_max_error_rate_increase: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Largest increase of the share of rows without a prediction with which `promote` moves the alias to the
    challenger."""

    promote_max_latency_ratio: Annotated[float, Meta(gt=0)] | None = None
    """Largest ratio of the challenger's median latency to the champion's with which `promote` moves the alias to the
    challenger. If not set, it is not checked."""

    max_source_age_s: Annotated[float, Meta(gt=0)] | None = None
    """Age in seconds of the newest event in a feature view's source. Above it, Dagit shows a warning. If not set, the
    view's TTL applies."""

    host: Annotated[str, Meta(min_length=1)] = "127.0.0.1"
    """Address that the API listens on."""

    port: Annotated[int, Meta(ge=0, le=65535)] = 8172
    """Port that the API listens on."""

    deadline_s: Annotated[float, Meta(gt=0, le=60)] = 0.3
    """Seconds that a request may take, from the arrival of its body to the response."""

    max_entities: Annotated[int, Meta(ge=1, le=100_000)] = 1000
    """Maximum number of entities per request."""

    max_bulk_entities: Annotated[int, Meta(ge=1, le=10_000_000)] = 100_000
    """Maximum number of rows of an Arrow stream or Parquet file sent to `POST /scores`. More than
    `SERVING_MAX_ENTITIES` rows are scored in blocks."""

    bulk_deadline_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    """Seconds that a request of more than `SERVING_MAX_ENTITIES` entities may take, from the arrival of its body to the
    response. All of its blocks share this time; `SERVING_DEADLINE_S` does not apply."""

    max_body_bytes: Annotated[int, Meta(ge=64)] = 1_048_576
    """Maximum size of a request body, in bytes. Arrow streams and Parquet files may have 32 times as many, as sent and
    decompressed."""

    body_timeout_s: Annotated[float, Meta(gt=0, le=300)] = 5.0
    """Seconds that a request's body may take to arrive."""

    max_concurrent_requests: Annotated[int, Meta(ge=1, le=256)] = 2
    """Threads that look up features and predict. One thread processes all requests that wait at the same time together;
    another joins in if that takes longer than 1.5 times the usual duration, but at least 10 ms and at most 50 ms. More
    threads help only if the feature store is far away."""

    max_waiting_requests: Annotated[int, Meta(ge=0, le=10_000)] = 128
    """Unfinished requests allowed in addition to the number of those threads. Further requests get 503 at once."""

    drain_s: Annotated[float, Meta(ge=0, le=300)] = 5.0
    """Seconds that the API keeps accepting connections after SIGTERM, while /ready responds with 503. Set it to the
    time that a load balancer needs to notice."""

    api_keys: tuple[Secret, ...] = ()
    """API keys for the scoring routes, each at least 16 characters, sent as `Authorization: Bearer <key>`. Set several
    to rotate them. Required if the API listens beyond loopback. Comma-separated."""

    api_keys_file: Path | None = None
    """File with additional API keys, one per line. Read at startup."""

    allow_anonymous: bool = False
    """`true` lets the API listen beyond loopback without keys: anyone who can reach the port can request scores."""

    log_model_errors: bool = True
    """`false` omits the messages of a model's exceptions from the log: they may quote feature values."""

    prediction_log: Location | None = None
    """Folder, or `s3://bucket/prefix`, for the prediction log: Parquet files with a row for each entity of a scoring
    request (docs/monitoring.md). If not set, nothing is logged."""

    prediction_log_seconds: Annotated[float, Meta(ge=0.1, le=3600)] = 10.0
    """Seconds after which rows of the prediction log are in a file. As many may be lost if the process is killed."""

    prediction_log_rows: Annotated[int, Meta(ge=1, le=1_000_000)] = 100_000
    """Rows of the prediction log after which a file is written before that time. Three times as many may wait in memory
    while files can't be written. Further rows are dropped and counted."""

    prediction_log_sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Fraction of the requests in the prediction log, chosen by request id: 0 for none."""

    challenger_sample: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Fraction of the answered requests that the version under the alias `challenger` also scores, chosen by request id
    as for the prediction log. With a prediction log, `SERVING_PREDICTION_LOG_SAMPLE` is used instead if it is smaller.
    0 ignores the alias."""

    log_level: LogLevel = "info"
    """Minimum level of the API's log: `debug`, `info`, `warning` or `error`. Each request is logged at `info`, health
    checks at `debug`."""

    otlp_endpoint: str | None = None
    """OpenTelemetry collector (`http://host:4318`) that receives a trace of each scoring request. If not set, there are
    no traces."""

    webhook_secret: Secret | None = None
    """Secret of an MLflow registry webhook to `POST /webhooks/mlflow`, which makes the API check the alias at once. At
    least 16 characters. If not set, the route does not exist."""

    poll_interval_s: Annotated[float, Meta(ge=0.1, le=3600)] = 5.0
    """Seconds between two polls of the alias by the API. Also the maximum age of its copy of the Feast registry."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read every setting from `environment`, for example os.environ. An empty value counts as not set.

        Raises:
            SettingsError: a value is invalid, a required one is missing, or a SERVING_ variable is unknown. The message
                names the variable and the allowed values.
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
                variables["model_name"], "is not set: name the registered model to serve, for example my_ranker."
            )
        if "daily_replay" in values.get("schedules", ()) and "prediction_log" not in values:
            problem = f"names daily_replay, which needs a prediction log: set {variables['prediction_log']}."
            raise SettingsError(variables["schedules"], problem)
        return cls(**values)

    def __repr__(self) -> str:
        """Return a representation without passwords in URLs and values of SERVING_SPARK_CONF."""
        values = msgspec.structs.asdict(self) | {"spark_conf": dict.fromkeys(self.spark_conf, "***")}
        safe = {name: without_secrets(value) if isinstance(value, str) else value for name, value in values.items()}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in safe.items())})"

    @property
    def registry_uri(self) -> str:
        """Return the URI of the model registry, by default that of the tracking server."""
        return self.mlflow_registry_uri or self.mlflow_tracking_uri


def variable_names() -> dict[str, str]:
    """Return field of `Settings` → its environment variable."""
    return {field: TOOL_VARIABLES.get(field, PREFIX + field.upper()) for field in Settings.__struct_fields__}


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a string", Secret: "a secret"}


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
        secret = plain == dict[str, str] or Secret in (plain, *typing.get_args(plain))  # SERVING_SPARK_CONF has keys
        value = "invalid" if secret else repr(without_secrets(text))
        raise SettingsError(variable, f"is {value}: it must be {_allowed(plain)} ({error}).") from None


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
        return f"a comma-separated list, each item {_allowed(typing.get_args(bare)[0])}"
    if typing.get_origin(bare) is Literal:
        return " | ".join(str(option) for option in typing.get_args(bare))
    if typing.get_origin(bare) is dict:
        return 'a JSON object such as {"input": 0.5}'
    return ALLOWED if bare is Location else _KINDS.get(bare, str(bare))


def _unknown_problem(variable: str, known: list[str]) -> str:
    near = difflib.get_close_matches(variable, known, n=1)
    return "is not a setting" + (f": did you mean {near[0]}?" if near else "; docs/settings.md lists them all.")
