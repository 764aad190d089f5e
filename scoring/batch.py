"""A batch request from its file to batch_input.parquet and on to batch_output.parquet."""

import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.batch_request import ROWS_A_BATCH, read_batch_request
from scoring.errors import BatchRequestError, first_line
from scoring.features import ModelFeatures, reasons_from_nulls
from scoring.files import whole_file
from scoring.model import Model
from scoring.offline import with_point_in_time_features
from scoring.predict import Policy, Scores, score

if TYPE_CHECKING:
    from feast import FeatureStore

MODEL_KEY = b"serving.model"
SERVICE_KEY = b"serving.feature_service"


class BatchSummary(msgspec.Struct, frozen=True):
    """What happened to the rows of one batch request."""

    rows: int
    scored: int
    reasons: dict[str, int]
    """Reason → number of rows; rows that were scored as they are have none."""


def write_batch_input(file: Path, store: "FeatureStore", model: str, features: ModelFeatures, destination: Path) -> int:
    """Join the request's rows with the model's features and write batch_input.parquet, whole; returns its rows.

    The file holds the request's own columns, then the features in signature order; same rows, same order. The model
    version that it was made for stands in its schema's metadata.

    Raises:
        BatchRequestError: see `read_batch_request`.
        FeatureStoreError: see `with_point_in_time_features`.
    """
    metadata = {MODEL_KEY: model.encode(), SERVICE_KEY: features.service.encode()}
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".request-") as folder:
        request = Path(folder) / "request.parquet"
        _write(read_batch_request(file, features), request, {})
        with whole_file(destination) as part:
            return _write(with_point_in_time_features(store, features, request), part, metadata)


def _write(tables: Iterator[pa.Table], file: Path, metadata: dict[bytes, bytes]) -> int:
    rows = 0
    first = next(tables)
    schema = first.schema.with_metadata(metadata)
    # Dictionary encoding of floats is most of the time of writing them, and saves nothing where values hardly repeat.
    with pq.ParquetWriter(file, schema, use_dictionary=_repeating(schema)) as writer:
        for table in itertools.chain([first], tables):
            writer.write_table(table.replace_schema_metadata(metadata))
            rows += table.num_rows
    return rows


def _repeating(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_boolean(field.type)]


def read_batch_input_model(file: Path) -> str:
    """`name/version` of the model that a batch_input.parquet was made for.

    Raises:
        BatchRequestError: there is no such file, or it was not made by `write_batch_input`.
    """
    try:
        metadata = pq.read_schema(file).metadata or {}
    except FileNotFoundError:
        raise BatchRequestError(str(file), "there is no such file: materialize batch_input first.") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise BatchRequestError(
            str(file), f"it can't be read ({first_line(error)}): materialize batch_input again."
        ) from None
    if MODEL_KEY not in metadata:
        raise BatchRequestError(str(file), "it does not say which model it is for: materialize batch_input again.")
    return str(metadata[MODEL_KEY], "utf-8")


def write_batch_output(
    file: Path, model: Model, features: ModelFeatures, policy: Policy, destination: Path
) -> BatchSummary:
    """Score batch_input.parquet and write batch_output.parquet: its columns, then prediction, reason and the origin.

    Streams: memory does not grow with the number of rows.

    Raises:
        BatchRequestError: the input can't be read, or was made for another signature.
        FeaturesRejected: policy `reject` and a row lacks a feature; it is named by its row in the file, from 1.
        PredictionFailed: the model failed. In all three cases an older batch_output.parquet stays as it was.
    """
    reasons: Counter[str] = Counter()
    scored = 0
    with pq.ParquetFile(file, pre_buffer=False) as source, whole_file(destination) as part:
        _check_model(file, source.schema_arrow, model)
        _check_signature(file, source.schema_arrow, features)
        schema = _output_schema(source.schema_arrow)
        with pq.ParquetWriter(part, schema, use_dictionary=_repeating(schema)) as writer:
            start = 0
            for rows in _batches(source):
                scores = _score_rows(rows, start, model, features, policy)
                writer.write_table(_with_scores(rows, scores, model, features, schema))
                scored += len(scores.predictions) - scores.predictions.null_count
                reasons.update(dict(_counts(scores.reasons)))
                start += rows.num_rows
        _check_rows(part, source.metadata.num_rows)
    return BatchSummary(rows=start, scored=scored, reasons=dict(reasons))


def _batches(source: pq.ParquetFile) -> Iterator[pa.Table]:
    for batch in source.iter_batches(batch_size=ROWS_A_BATCH):
        yield pa.Table.from_batches([batch])


def _score_rows(rows: pa.Table, start: int, model: Model, features: ModelFeatures, policy: Policy) -> Scores:
    vectors = rows.select(list(features.signature.names))
    return score(
        model,
        vectors,
        reasons_from_nulls(features, vectors),
        policy,
        name_row=lambda i: f"row {start + i + 1}",
    )


def _with_scores(rows: pa.Table, scores: Scores, model: Model, features: ModelFeatures, schema: pa.Schema) -> pa.Table:
    origin = (model.version.name, model.version.version, features.service)
    columns = [*rows.columns, scores.predictions, scores.reasons]
    columns += [pa.repeat(pa.scalar(value), rows.num_rows) for value in origin]
    return pa.Table.from_arrays(columns, schema=schema)


def _output_schema(request: pa.Schema) -> pa.Schema:
    added = [
        pa.field("prediction", pa.float64()),
        pa.field("reason", pa.string()),
        pa.field("model_name", pa.string(), nullable=False),
        pa.field("model_version", pa.int64(), nullable=False),
        pa.field("feature_service", pa.string(), nullable=False),
    ]
    return pa.schema([*request, *added], metadata=request.metadata)


def _counts(reasons: pa.Array) -> Iterator[tuple[str, int]]:
    for pair in pc.value_counts(reasons.drop_null()).to_pylist():
        yield pair["values"], pair["counts"]


def _check_model(file: Path, found: pa.Schema, model: Model) -> None:
    # Looked at in the open file: another run may replace it at any moment.
    made_for = (found.metadata or {}).get(MODEL_KEY, b"")
    if made_for != str(model.version).encode():
        raise BatchRequestError(
            str(file),
            f"it was made for model version {made_for.decode() or '(none)'}, not for {model.version}: "
            "materialize batch_input again.",
        )


def _check_signature(file: Path, found: pa.Schema, features: ModelFeatures) -> None:
    for model_input in features.signature.inputs:
        index = found.get_field_index(model_input.name)
        if index < 0 or found.field(index).type != model_input.dtype:
            raise BatchRequestError(
                str(file),
                f"the model needs it as {model_input.dtype}: materialize batch_input again, for this model version.",
                column=model_input.name,
            )


def _check_rows(part: Path, rows: int) -> None:
    written = pq.read_metadata(part).num_rows
    if written != rows:
        raise BatchRequestError(
            str(part), f"{written} rows were written for {rows}: the disk lost some. Nothing was published."
        )
