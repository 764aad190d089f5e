"""A batch request from its file to batch_input.parquet and on to batch_output.parquet and its manifest."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.allocation import give_back_memory
from scoring.batch.join import PointInTimeJoin
from scoring.batch.manifest import (
    MANIFEST_NAME,
    ORIGIN_KEY,
    OUTCOME_KEY,
    Manifest,
    Origin,
    ScoringSummary,
    as_bytes,
    read_origin,
    settle_manifest,
)
from scoring.batch.scored_rows import CONSTANTS, Scoring
from scoring.errors import BatchRequestError, StillWritten, StorageError, first_line
from scoring.features.feature_store import read_definitions
from scoring.features.model_features import ModelFeatures
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ROWS_PER_BATCH, ParquetFiles, no_rows, write_tables
from scoring.files.transfer import Content, Held, fetch, hashing, holding, publishing
from scoring.models.model import Model
from scoring.predict import Policy

if TYPE_CHECKING:
    from feast import FeatureStore

# What looks at a finished table before it is published, and raises to have it thrown away. Gets the table, the number
# of the request's rows and, view → rows, for how many the view's row was too old (empty where the store does not tell).
InspectInput = Callable[[ParquetFiles, int, Mapping[str, int]], None]
# The same for what was scored: the table and what came out.
InspectOutput = Callable[[ParquetFiles, ScoringSummary], None]


def accept(*_: object) -> None:
    """Inspect nothing."""


def write_batch_input(
    request: Location,
    store: "FeatureStore",
    model: str,
    features: ModelFeatures,
    destination: Location,
    inspect: InspectInput = accept,
) -> Content:
    """Join the request's rows with the model's features and write batch_input.parquet, whole; returns which bytes.

    The file holds the request's own columns, then the features in signature order; same rows, same order. What it was
    made from, the model version before all, stands in its schema's metadata (`Origin`).

    Raises:
        BatchRequestError: see `read_batch_request`.
        FeatureStoreError: see `PointInTimeJoin.tables`.
        StorageError: the request can't be fetched, or the result can't be written. An older one stays as it was.
    """
    give_back_memory()
    definitions = read_definitions(store).hash
    with publishing(destination) as part, hashing(part) as written, scratch_folder() as scratch:
        copy = scratch / f"request{Path(request.name).suffix}"
        origin = Origin(fetch_file(request, copy), model, features.service, definitions)
        metadata = {ORIGIN_KEY.encode(): msgspec.json.encode(origin)}
        join = PointInTimeJoin(store, features, copy, str(request))
        write_tables(join.tables(), part, metadata)
        with ParquetFiles([part]) as table:
            inspect(table, join.rows, join.stale)
        return written(destination.name)


def read_batch_input_model(file: Location) -> str:
    """`name/version` of the model that a batch_input.parquet was made for.

    Raises:
        BatchRequestError: there is no such file, or it was not made by `write_batch_input`.
        StorageError: it can't be reached.
    """
    try:
        with file.open() as opened:
            return read_origin(pq.read_schema(opened), str(file)).model
    except FileNotFoundError:
        raise _not_there(file) from None
    except (pa.ArrowInvalid, OSError) as error:
        raise _not_readable(file, error) from None


def write_batch_output(
    source: Location,
    model: Model,
    features: ModelFeatures,
    policy: Policy,
    destination: Location,
    inspect: InspectOutput = accept,
) -> Manifest:
    """Score batch_input.parquet and write batch_output.parquet, then manifest.json beside it.

    It has the input's columns, then prediction, reason and the origin. Streams: memory does not grow with the number of
    rows. The same input, model version and policy give the same bytes.

    Raises:
        BatchRequestError: the input can't be read, or was made for another version or signature.
        FeaturesRejected: policy `reject` and a row lacks a feature; it is named by its row in the file, from 1.
        PredictionFailed: the model failed.
        StorageError: the input can't be fetched, or the result can't be written. In all of these cases an older
            batch_output.parquet stays as it was, but where the very last step fails, replacing manifest.json after it
            (the object store goes away between two uploads, say): then the next run mends the manifest.
    """
    give_back_memory()
    # The manifest's place is taken first: whatever keeps it from being written keeps the output from being replaced.
    with (
        publishing(destination.parent / MANIFEST_NAME) as manifest,
        publishing(destination) as part,
        hashing(part) as written,
        scratch_folder() as scratch,
    ):
        origin, outcome = _write_scored(source, model, features, policy, part, scratch, inspect)
        ours = Manifest(written(destination.name), origin, outcome)
        manifest.write_bytes(as_bytes(ours))
    return settle_manifest(destination, ours)


def _write_scored(
    source: Location,
    model: Model,
    features: ModelFeatures,
    policy: Policy,
    part: Path,
    scratch: Path,
    inspect: InspectOutput,
) -> tuple[Origin, ScoringSummary]:
    try:
        with contextlib.ExitStack() as stack:
            held = _hold(stack, source, scratch / source.name)
            opened = stack.enter_context(pq.ParquetFile(held.file, pre_buffer=False, page_checksum_verification=True))
            schema = opened.schema_arrow
            origin = check_made_for(str(source), schema, model, features)
            scoring = Scoring(model, features, policy)
            rows = write_tables(
                scoring.of(_tables(opened, source)),
                part,
                schema.metadata,
                lambda: {OUTCOME_KEY: msgspec.json.encode(scoring.outcome(held.content())).decode()},
                CONSTANTS,
            )
            _check_rows(part, opened.metadata.num_rows, rows)
            outcome = scoring.outcome(held.content())
            with ParquetFiles([part]) as table:
                inspect(table, outcome)
            return origin, outcome
    except pa.ArrowInvalid as error:
        raise _not_readable(source, error) from None
    except StillWritten:
        raise _still_written(source) from None


def _tables(opened: pq.ParquetFile, source: Location) -> Iterator[pa.Table]:
    if opened.metadata.num_rows == 0:
        yield no_rows(opened.schema_arrow)
    batches = opened.iter_batches(batch_size=ROWS_PER_BATCH)
    while True:
        try:
            batch = next(batches, None)
        except OSError as error:  # not of the disk that is written to
            raise _not_readable(source, error) from None
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def fetch_file(source: Location, copy: Path) -> Content:
    """`fetch`, for a request or what was made of one.

    Raises:
        BatchRequestError: there is no such file.
        StorageError: as `fetch`.
    """
    try:
        return fetch(source, copy)
    except FileNotFoundError:
        raise _not_there(source) from None
    except StillWritten:
        raise _still_written(source) from None


def _hold(stack: contextlib.ExitStack, source: Location, copy: Path) -> Held:
    try:
        return stack.enter_context(holding(source, copy))
    except FileNotFoundError:
        raise _not_there(source) from None
    except StillWritten:
        raise _still_written(source) from None


def _still_written(file: Location) -> BatchRequestError:
    return BatchRequestError(str(file), "it kept changing while it was read: somebody is writing to it.")


def _not_there(file: Location) -> BatchRequestError:
    hint = "" if file.name != "batch_input.parquet" else ": materialize batch_input first"
    return BatchRequestError(str(file), f"there is no such file{hint}.")


def _not_readable(file: Location, error: BaseException) -> BatchRequestError:
    return BatchRequestError(str(file), f"it can't be read ({first_line(error)}): materialize batch_input again.")


def check_made_for(shown: str, found: pa.Schema, model: Model, features: ModelFeatures) -> Origin:
    """What a batch input of this schema was made from, if that is for this version and has its inputs.

    Raises:
        BatchRequestError: it was not; `shown` names it.
    """
    origin = read_origin(found, shown)
    if origin.model != str(model.version):
        raise BatchRequestError(
            shown,
            f"it was made for model version {origin.model}, not for {model.version}: materialize batch_input again.",
        )
    if origin.feature_service != features.service:
        raise BatchRequestError(
            shown,
            f"it was made from feature service {origin.feature_service!r}, and {model.version} names "
            f"{features.service!r} now: materialize batch_input again.",
        )
    for model_input in features.signature.inputs:
        index = found.get_field_index(model_input.name)
        if index < 0 or found.field(index).type != model_input.dtype:
            raise BatchRequestError(
                shown,
                f"the model needs it as {model_input.dtype}: materialize batch_input again, for this model version.",
                column=model_input.name,
            )
    return origin


def _check_rows(part: Path, expected: int, scored: int) -> None:
    written = pq.read_metadata(part).num_rows
    if not expected == scored == written:
        raise StorageError("writing", str(part), f"{written} rows were written for {expected}; nothing was published")
