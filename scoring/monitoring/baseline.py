"""The baseline of a model version: what its features and outputs were in training, or else on the first day of its log.

A training script logs it with the model:

    logged = mlflow.sklearn.log_model(model, name="model", ...)
    log_baseline(logged.model_id, features, model.predict(features))
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from scoring.batch.quality import sampled_rows
from scoring.errors import StorageError
from scoring.features.model_features import ModelFeatures, feast_name
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.transfer import publishing
from scoring.models.outputs import PREDICTION
from scoring.models.registry import MlflowRegistry, ModelVersion
from scoring.monitoring.drift import MIN_ROWS_FOR_DRIFT, Baseline, describe_all
from scoring.monitoring.log_files import LogFile, answered, logged_outputs
from scoring.monitoring.prediction_log import PROBLEM

if TYPE_CHECKING:
    import pandas as pd

BASELINE_FILE = "serving_baseline.json"
"""In the folder of the model's files."""
FIRST_DAYS = "_baseline"
"""The folder of the baselines of first days, beside the days of the log."""
# Decoding holds up all threads: 0.4 s for this size. 2000 columns of numbers, or 600 of short strings, have as much.
MAX_BASELINE_BYTES = 2_000_000
TOO_LARGE = f"it has more than {MAX_BASELINE_BYTES:,} bytes"

logger = logging.getLogger(__name__)


def log_baseline(model_id: str, features: "pd.DataFrame", predictions: Any) -> None:
    """Store the distributions of the training data's features and predictions with a logged model.

    Args:
        model_id: the attribute of what MLflow's `log_model` returned.
        features: (n_rows, n_inputs), named as in the model's signature.
        predictions: (n_rows,) of the output that is served; for several, a mapping or a frame: output → (n_rows,).

    Raises:
        ValueError: the baseline has more than MAX_BASELINE_BYTES, because of thousands of columns or of long strings;
            or an output does not have one value per row.
    """
    import mlflow

    content = msgspec.json.encode(measure_training(features, predictions))
    if len(content) > MAX_BASELINE_BYTES:
        raise ValueError(TOO_LARGE)
    with scratch_folder() as scratch:
        file = scratch / BASELINE_FILE
        file.write_bytes(content)
        mlflow.MlflowClient().log_model_artifact(model_id, str(file))


def measure_training(features: "pd.DataFrame", predictions: Any) -> Baseline:
    """Return the baseline that `log_baseline` stores."""
    several = hasattr(predictions, "items") and getattr(predictions, "ndim", 2) == 2  # a series has items, too
    outputs = dict(predictions.items()) if several else {"": predictions}
    columns = {str(name): pa.array(values, from_pandas=True) for name, values in features.items()}
    rows = max(map(len, columns.values()), default=0)
    for name, values in outputs.items():
        column = PREDICTION if len(outputs) == 1 else f"{PREDICTION}_{name}"
        columns[column] = pa.array(np.ravel(values), from_pandas=True)
        if len(columns[column]) != rows:
            counted = f"{len(columns[column])} predictions for {rows} rows"
            raise ValueError(f"{counted}: pass one per row, or for several outputs a mapping of their names to arrays")
    return describe_all(pa.table(columns))


def content_in(folder: Path) -> bytes | None:
    """Return the content of BASELINE_FILE in a model's folder, at most one byte beyond the limit; None without it."""
    file = folder / BASELINE_FILE
    if not file.is_file():
        return None
    with file.open("rb") as content:
        return content.read(MAX_BASELINE_BYTES + 1)


def read_baseline(version: ModelVersion, logged: bytes | None, log: Location | None) -> Baseline | None:
    """Return the baseline of a version; None without a valid one. Report an invalid one in the log.

    Args:
        version: the version.
        logged: the content of its BASELINE_FILE, or more than MAX_BASELINE_BYTES of it; None without one.
        log: the prediction log, which has baselines of first days.
    """
    if logged is not None and (found := _decoded(logged, f"{BASELINE_FILE} of {version}")) is not None:
        return found
    if log is None:
        return None
    place = _first_day_of(log, version)
    try:
        return _decoded(place.read_bytes(MAX_BASELINE_BYTES + 1), str(place))
    except FileNotFoundError:
        return None
    except StorageError as error:
        logger.warning("There is no baseline: %s", error)
        return None


def registered_baseline(registry: MlflowRegistry, version: ModelVersion, log: Location | None) -> Baseline | None:
    """Return a registered version's baseline, as `read_baseline` does.

    Raises:
        RegistryError: its files can't be read.
    """
    return read_baseline(version, registry.read(version, BASELINE_FILE, MAX_BASELINE_BYTES + 1), log)


def keep_first_day(log: Location, version: ModelVersion, day: str, measure: Callable[[str], Baseline]) -> Baseline:
    """Return the baseline of the first day of a version's log. If none of an earlier day with enough rows is kept,
    measure and keep this day's.

    Raises:
        StorageError: it can't be written.
    """
    source = f"the first day of its log, {day}"
    kept = read_baseline(version, None, log)
    if kept is None or kept.source >= source or kept.rows < MIN_ROWS_FOR_DRIFT:
        kept = measure(source)
        with publishing(_first_day_of(log, version)) as part:
            part.write_bytes(msgspec.json.encode(kept))
    return kept


def log_columns(features: ModelFeatures, schema: pa.Schema) -> dict[str, str]:
    """Return the columns of a file of the prediction log that have a baseline: name in the baseline → in the log."""
    filled = {feature.input: feast_name(feature.column) for feature in features.features}
    columns = {name: filled.get(name, name) for name in features.signature.names}
    columns |= {name: name for name in logged_outputs(schema)}
    return {name: column for name, column in columns.items() if column in schema.names}


def read_log(files: Iterable[LogFile], features: ModelFeatures) -> Iterator[pa.Table]:
    """Yield the columns of logged rows that were answered, by their names in a baseline, some rows at a time.

    Raises:
        StorageError: a file can't be read.
    """
    for file in files:
        columns = log_columns(features, file.schema)
        for table in file.tables(list({*columns.values(), PROBLEM})):
            rows = answered(table)
            yield pa.table({name: rows[column] for name, column in columns.items()})


def measure_log(files: Sequence[LogFile], features: ModelFeatures, source: str) -> Baseline:
    """Return the distributions of logged rows that were answered, or of a sample of them. Raises StorageError."""
    total = sum(file.rows for file in files)
    sampled, measured = [], 0
    for rows in read_log(files, features):
        step = max(1, -(-total // sampled_rows(rows.num_columns)))
        sampled.append(rows.take(pa.arange(0, rows.num_rows, step)))
        measured += rows.num_rows
    return describe_all(pa.concat_tables(_with_one_type(sampled), promote_options="default"), source, measured)


def _with_one_type(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Return tables in which a column that has several types of numbers, or booleans, is a double.

    A feature's type may change on the day: a model's input of type double accepts several.
    """
    types: dict[str, set[pa.DataType]] = {}
    for field in (field for table in tables for field in table.schema):
        types.setdefault(field.name, set()).add(field.type)
    names = [name for name, found in types.items() if len(found) > 1]
    changed = []
    for table in tables:
        fields = [pa.field(each.name, pa.float64()) if each.name in names else each for each in table.schema]
        changed.append(table.cast(pa.schema(fields), safe=False))
    return changed


def _decoded(content: bytes, place: str) -> Baseline | None:
    try:
        if len(content) > MAX_BASELINE_BYTES:
            raise ValueError(TOO_LARGE)
        return msgspec.json.decode(content, type=Baseline)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:  # ValueError: also of bytes that are not UTF-8
        logger.warning("The baseline %s is not used: %s", place, error)
        return None


def _first_day_of(log: Location, version: ModelVersion) -> Location:
    return log / FIRST_DAYS / f"{version.name}-{version.version}.json"
