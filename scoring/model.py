"""Load a registered model version: check its files before any of them is executed, then make it predict.

Model files are code. Which formats and which types may be loaded is our own list (`Settings.model_formats`,
`Settings.skops_trusted_types`), never the one that a model file brings along.
"""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from scoring.errors import ModelRefused, PredictionFailed, first_line
from scoring.registry import OUTPUT_COLUMN_TAG, ModelVersion, Registry
from scoring.settings import Settings
from scoring.signature import Signature, read_signature

if TYPE_CHECKING:
    import pandas as pd

    # What a model makes of a frame with its inputs as columns: (n_rows,) or (n_rows, n_outputs), or such a frame.
    PredictFunction = Callable[[pd.DataFrame], Any]


class Model(msgspec.Struct, frozen=True):
    """One loaded model version. Holds no connection; threads may share it, as they may scikit-learn's predict."""

    version: ModelVersion
    signature: Signature
    output_column: int | None
    predict_fn: "PredictFunction"

    def predict(self, vectors: pa.Table) -> np.ndarray:
        """Predictions, float64 (n_rows,), row i for feature vector i.

        Args:
            vectors: complete feature vectors, (n_rows, n_inputs), in signature order and types. A null reaches the
                model as NaN (None in a text column), for models that impute by themselves.

        Raises:
            PredictionFailed: the model raised, or its output is not one number a row. The text holds no feature values.
        """
        if vectors.num_rows == 0:
            return np.empty(0, dtype=np.float64)
        frame = vectors.to_pandas()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                output = self.predict_fn(frame)
        except Exception as error:  # a model is anybody's code
            raise PredictionFailed(str(self.version), f"{type(error).__name__} on {len(frame)} rows") from error
        return one_number_a_row(str(self.version), output, len(frame), self.output_column)


def load_model(registry: Registry, version: ModelVersion, settings: Settings) -> Model:
    """Download, check and load one version.

    Raises:
        RegistryError: the files can't be fetched.
        ModelRefused: not a scikit-learn model, no usable signature, a format or type that is not allowed, or files that
            do not load.
    """
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        files = registry.download(version, Path(folder))
        description = _read_description(str(version), files / "MLmodel")
        signature = _read_signature(str(version), description)
        _check_format(str(version), files, description, settings)
        predict_fn = _load_predict_function(str(version), files, description)
    return Model(version, signature, _output_column(version, settings), predict_fn)


def load_signature(registry: Registry, version: ModelVersion) -> Signature:
    """The signature of one version, without fetching the model itself.

    Raises:
        RegistryError: the MLmodel file can't be fetched.
        ModelRefused: it can't be read, or holds no usable signature.
    """
    with tempfile.TemporaryDirectory(prefix="model-") as folder:
        description = _read_description(str(version), registry.download(version, Path(folder), "MLmodel"))
    return _read_signature(str(version), description)


def one_number_a_row(model: str, output: Any, rows: int, output_column: int | None) -> np.ndarray:
    """A model's output as float64 (rows,).

    Raises:
        PredictionFailed: another number of rows, several columns and none chosen, or not numbers.
    """
    values = np.asarray(output)
    if values.ndim == 2 and output_column is not None:
        if output_column >= values.shape[1]:
            raise PredictionFailed(
                model,
                f"its output has {values.shape[1]} columns and column {output_column} was asked for "
                f"(tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN, counted from 0).",
            )
        values = values[:, output_column]
    elif values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or len(values) != rows:
        raise PredictionFailed(
            model,
            f"its output has shape {values.shape} for {rows} rows, and one number a row is needed: say which column "
            f"is the prediction by the version's tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN.",
        )
    if values.dtype.kind not in "fiub":
        raise PredictionFailed(
            model,
            f"its output is {values.dtype}, not numbers: log it with pyfunc_predict_fn='predict_proba' and choose the "
            f"column by the version's tag {OUTPUT_COLUMN_TAG} or SERVING_OUTPUT_COLUMN.",
        )
    return values.astype(np.float64)


def _read_description(model: str, file: Path) -> dict[str, Any]:
    import yaml

    try:
        description = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelRefused(model, f"its MLmodel file can't be read ({first_line(error)}).") from None
    if not isinstance(description, dict) or not isinstance(description.get("flavors"), dict):
        raise ModelRefused(model, "its MLmodel file names no flavors.")
    return description


def _read_signature(model: str, description: dict[str, Any]) -> Signature:
    signature = description.get("signature") or {}
    inputs = signature.get("inputs") if isinstance(signature, dict) else signature
    try:
        columns = msgspec.json.decode(inputs, type=list[dict[str, object]]) if inputs else None
    except (msgspec.MsgspecError, TypeError) as error:
        raise ModelRefused(model, f"the signature in its MLmodel file can't be read ({error}).") from None
    return read_signature(model, columns)


def _check_format(model: str, files: Path, description: dict[str, Any], settings: Settings) -> None:
    flavors = description["flavors"]
    pyfunc, sklearn = flavors.get("python_function") or {}, flavors.get("sklearn") or {}
    if pyfunc.get("loader_module") != "mlflow.sklearn" or not sklearn:
        raise ModelRefused(
            model,
            f"it is not a scikit-learn model (its loader is {pyfunc.get('loader_module')!r}): log it with "
            "mlflow.sklearn.log_model.",
        )
    if sklearn.get("code") or pyfunc.get("code"):
        raise ModelRefused(model, "it brings Python code of its own (code_paths), which is not loaded.")
    serialization = sklearn.get("serialization_format", "pickle")
    if serialization not in settings.model_formats:
        raise ModelRefused(
            model,
            f"its format {serialization} is not allowed (SERVING_MODEL_FORMATS is "
            f"{','.join(settings.model_formats)}). Log it with serialization_format='skops', or allow the format if "
            "you trust whoever can write to the registry: such files run code.",
        )
    if serialization == "skops":
        _check_skops_types(model, files / _model_file(model, files, pyfunc), settings.skops_trusted_types)


def _model_file(model: str, files: Path, pyfunc: dict[str, Any]) -> str:
    name = str(pyfunc.get("model_path", ""))
    path = (files / name).resolve()
    if not path.is_relative_to(files.resolve()) or not path.is_file():
        raise ModelRefused(model, f"its model file {name!r} is missing.")
    return name


def _check_skops_types(model: str, file: Path, trusted: tuple[str, ...]) -> None:
    import skops.io

    try:
        needed = skops.io.get_untrusted_types(file=file)
    except Exception as error:  # a damaged archive raises zipfile's, json's and skops' own kinds
        raise ModelRefused(model, f"its file {file.name} can't be read as skops ({first_line(error)}).") from None
    refused = sorted(set(needed) - set(trusted))
    if refused:
        raise ModelRefused(
            model,
            f"its file holds types that are not allowed: {', '.join(refused)}. Add them to "
            "SERVING_SKOPS_TRUSTED_TYPES if you know them.",
        )


def _load_predict_function(model: str, files: Path, description: dict[str, Any]) -> "PredictFunction":
    import cloudpickle
    import skops.io

    sklearn, pyfunc = description["flavors"]["sklearn"], description["flavors"]["python_function"]
    file = files / _model_file(model, files, pyfunc)
    predict_fn = str(pyfunc.get("predict_fn", "predict"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model of another scikit-learn version warns once per estimator
            if sklearn.get("serialization_format", "pickle") == "skops":
                estimator = skops.io.load(file, trusted=skops.io.get_untrusted_types(file=file))
            else:
                estimator = cloudpickle.loads(file.read_bytes())
        return getattr(estimator, predict_fn)  # type: ignore[no-any-return]
    except Exception as error:  # truncated and crafted files raise whatever their bytes lead to
        raise ModelRefused(model, f"its files do not load ({type(error).__name__}: {first_line(error)}).") from None


def _output_column(version: ModelVersion, settings: Settings) -> int | None:
    tag = version.tags.get(OUTPUT_COLUMN_TAG)
    if tag is None:
        return settings.output_column
    if not tag.isdecimal():
        raise ModelRefused(str(version), f"its tag {OUTPUT_COLUMN_TAG} is {tag!r}: a column counted from 0 is needed.")
    return int(tag)
