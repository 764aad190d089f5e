"""The settings: read once from the environment at start, passed on as a value, never read again."""

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from scoring.errors import SettingsError

MissingFeaturesPolicy = Literal["exclude", "reject", "impute"]
ModelFormat = Literal["skops", "cloudpickle", "pickle"]

PREFIX = "SERVING_"
# Variables of the tools themselves, read under the names that their own users know.
TOOL_VARIABLES = {"mlflow_tracking_uri": "MLFLOW_TRACKING_URI", "mlflow_registry_uri": "MLFLOW_REGISTRY_URI"}

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

    batch_requests: Path = Path("batch_requests")
    """Folder of batch request files (`<request>.csv`, `.tsv` or `.parquet`)."""

    artifacts: Path = Path("artifacts")
    """Folder of registered_model_version.json and `<request>/batch_input.parquet`, `<request>/batch_output.parquet`."""

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

    max_concurrent_requests: Annotated[int, Meta(ge=1, le=256)] = 8
    """Requests that are worked on at once, each in a thread."""

    max_waiting_requests: Annotated[int, Meta(ge=0, le=10_000)] = 32
    """Requests that may wait for one of those threads; further ones are answered 503 at once."""

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
            return msgspec.convert(items, plain)
        if typing.get_origin(_bare(plain)) is dict:
            return msgspec.json.decode(text, type=plain)
        return msgspec.convert(text, plain, strict=False)
    except msgspec.MsgspecError as error:
        raise SettingsError(variable, f"is {text!r}, which is not allowed: {_allowed(plain)} ({error}).") from None


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
    return {int: "a whole number", float: "a number", str: "a text"}.get(bare, str(bare)) + " within its bounds is"


def _unknown_problem(variable: str, known: list[str]) -> str:
    near = difflib.get_close_matches(variable, known, n=1)
    return "is not a setting" + (f": did you mean {near[0]}?" if near else "; docs/settings.md lists them all.")
