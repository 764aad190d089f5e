"""Wraps a model version for Spark's executors in an MLflow pyfunc model that calls the predict function of batch and
online.

The registered files are not passed to `mlflow.pyfunc.spark_udf` directly: MLflow would trust the types that they name,
enforce the signature on frames in which integer columns with a null have become doubles, and predict blocks of any size
that Spark chooses (docs/adr/003).
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import EngineError
from scoring.features.model_features import NOT_FOUND, NULL_FEATURE, STALE
from scoring.models.loading_rules import LoadingRules
from scoring.models.model import Model, load_model
from scoring.models.model_files import read_model_files
from scoring.models.outputs import Outputs, OutputType
from scoring.models.registry import ModelVersion
from scoring.predict import IMPUTED, MODEL_FAILED, NOT_FINITE, Policy, Scores, score
from scoring.serving import ServingModel

if TYPE_CHECKING:
    import pandas as pd

REASON = "reason"
# Reasons are encoded as integers from 1, with 0 for null: MLflow turns a null in a string column into "None" (3.17).
_INCOMPLETE = (NOT_FOUND, STALE, NULL_FEATURE)
REASONS = (*_INCOMPLETE, NOT_FINITE, MODEL_FAILED, *(IMPUTED + reason for reason in _INCOMPLETE))
# Output type → Spark's. Outputs are the columns `p0`, `p1`, …, with any value where the row has none.
SPARK_TYPES: dict[OutputType, str] = {"double": "double", "int64": "long", "bool": "boolean", "string": "string"}
_FILLERS: dict[OutputType, Any] = {"double": 0.0, "int64": 0, "bool": False, "string": ""}
DESCRIPTION, MODEL = "served.json", "model"


class _Served(msgspec.Struct, frozen=True):
    version: ModelVersion
    rules: LoadingRules
    as_array: bool
    outputs: Outputs
    policy: Policy


def save_served_model(folder: Path, serving: ServingModel, policy: Policy) -> Path:
    """Write the version as a pyfunc model below an empty folder. Return its path, for `spark_udf`.

    The model takes the columns of `encode_vectors` and returns those of `scores_schema`.

    Raises:
        EngineError: the version was loaded without keeping its files.
    """
    import mlflow.pyfunc

    files = serving.files
    if files is None:
        raise EngineError(f"The files of model version {serving.model.version} were not kept for Spark's executors.")
    data = folder / "data"
    shutil.copytree(files.folder, data / MODEL)
    served = _Served(
        version=files.version,
        rules=files.rules,
        as_array=serving.model.as_array,
        outputs=serving.model.outputs,
        # A task has only its own rows, so that the driver must reject, based on the reasons of all tasks.
        policy=policy if policy.kind == "impute" else msgspec.structs.replace(policy, kind="exclude"),
    )
    (data / DESCRIPTION).write_bytes(msgspec.json.encode(served))
    mlflow.pyfunc.save_model(folder / "pyfunc", loader_module=__name__, data_path=data, pip_requirements=[])
    return folder / "pyfunc"


def scores_schema(outputs: Outputs) -> str:
    """Return the columns of scores in Spark's language: the outputs, and `reason`, see REASONS."""
    columns = [f"p{place} {SPARK_TYPES[column.type]}" for place, column in enumerate(outputs.columns)]
    return ", ".join([*columns, f"{REASON} int"])


def decode_scores(rows: pa.Table, outputs: Outputs) -> Scores:
    """Return the scores in a table with the columns of `scores_schema`."""
    reasons = decode_reasons(rows[REASON])
    scored = pc.or_(pc.is_null(reasons), pc.fill_null(pc.starts_with(reasons, IMPUTED), False))
    columns = [pc.if_else(scored, rows[f"p{place}"].combine_chunks(), None) for place in range(len(outputs.columns))]
    return Scores(pa.Table.from_arrays(columns, schema=outputs.schema), reasons)


def encode_vectors(vectors: pa.Table, reasons: pa.Array) -> pa.Table:
    """Encode feature vectors and their reasons in columns that pandas does not change: `i0`, `n0`, `i1`, …, `reason`.

    For types without a null in pandas, `n0` is true if `i0` is null, and `i0` is then 0. Timestamps are int64
    nanoseconds since 1970.
    """
    columns: dict[str, Any] = {}
    for place, column in enumerate(vectors.columns):
        if _has_own_null(column.type):
            columns[f"i{place}"] = column
        else:
            plain = pc.cast(column, pa.int64()) if pa.types.is_timestamp(column.type) else column
            columns[f"i{place}"] = pc.fill_null(plain, pa.scalar(0, pa.int64()).cast(plain.type))
            columns[f"n{place}"] = pc.is_null(column)
    return pa.table(columns | {REASON: _encode_reasons(reasons)})


def _encode_reasons(reasons: pa.Array) -> pa.Array:
    return pc.cast(pc.add(pc.fill_null(pc.index_in(reasons, pa.array(REASONS)), -1), 1), pa.int32())


def decode_vectors(frame: "pd.DataFrame", schema: pa.Schema) -> pa.Table:
    """Decode the feature vectors of `encode_vectors`, with the signature's schema."""
    columns = []
    for place, field in enumerate(schema):
        values = frame[f"i{place}"]
        if _has_own_null(field.type):
            columns.append(pa.array(values, field.type, from_pandas=True))
        else:
            columns.append(pc.cast(pa.array(values.to_numpy(), mask=frame[f"n{place}"].to_numpy()), field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def decode_reasons(codes: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Decode codes to reasons, string (n_rows,), null for 0."""
    chosen = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    return pa.array([None, *REASONS], pa.string()).take(chosen)


def _has_own_null(dtype: pa.DataType) -> bool:
    return bool(pa.types.is_floating(dtype) or pa.types.is_string(dtype))


class _Scorer:
    """The model that MLflow's pyfunc calls."""

    def __init__(self, model: Model, policy: Policy) -> None:
        self._model = model
        self._policy = policy

    def predict(self, frame: "pd.DataFrame", _params: dict[str, Any] | None = None) -> "pd.DataFrame":
        import pandas as pd

        vectors = decode_vectors(frame, self._model.signature.schema)
        reasons = decode_reasons(pa.array(frame[REASON].to_numpy()))
        scores = score(self._model, vectors, reasons, self._policy, str)
        columns = {
            f"p{place}": pc.fill_null(column, pa.scalar(_FILLERS[described.type], column.type)).to_numpy()
            for place, (column, described) in enumerate(
                zip(scores.outputs.columns, self._model.outputs.columns, strict=True)
            )
        }
        return pd.DataFrame(columns | {REASON: _encode_reasons(scores.reasons).to_numpy()})


def _load_pyfunc(data: str) -> _Scorer:
    """Load the model. MLflow calls this function, because `loader_module` names this module."""
    served = msgspec.json.decode((Path(data) / DESCRIPTION).read_bytes(), type=_Served)
    files = read_model_files(served.version, Path(data) / MODEL, served.rules)
    return _Scorer(load_model(files, served.as_array, served.outputs), served.policy)
