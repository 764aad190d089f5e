"""The local batch engine: writes batch_input.parquet from a request, then batch_output.parquet and its manifest."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.allocation import give_back_memory
from scoring.batch.callbacks import InspectInput, InspectOutput, ReportRows, accept
from scoring.batch.join import PointInTimeJoin
from scoring.batch.manifest import (
    INPUT_NAME,
    MANIFEST_NAME,
    ORIGIN_KEY,
    OUTPUT_NAME,
    PARTED_INPUT_NAME,
    SUMMARY_KEY,
    Manifest,
    Origin,
    ScoringSummary,
    as_json,
    read_origin,
    settle_manifest,
    unreadable,
)
from scoring.batch.request import RequestCopy, input_types
from scoring.batch.scored_rows import CONSTANTS, TableScorer
from scoring.errors import BatchRequestError, StillWritten, StorageError
from scoring.features.model_features import ModelFeatures
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ROWS_PER_BATCH, ParquetFiles, no_rows, write_tables
from scoring.files.transfer import Content, hashing, holding, publishing, remove_file
from scoring.models.model import Model
from scoring.predict import Policy
from scoring.serving import ServingModel

if TYPE_CHECKING:
    from feast import FeatureStore


class LocalEngine:
    """Implements `scoring.engine.Engine` in this process: streams rows to one input file and one output file."""

    input_name, output_name = INPUT_NAME, OUTPUT_NAME

    def write_input(
        self,
        request: RequestCopy,
        origin: Origin,
        store: "FeatureStore",
        features: ModelFeatures,
        folder: Location,
        inspect: InspectInput = accept,
        progress: ReportRows = accept,
    ) -> Content:
        """See `Engine`."""
        give_back_memory()
        with publishing(folder / INPUT_NAME) as part, hashing(part) as written:
            join = PointInTimeJoin(store, features, request.file, request.place)
            tables = _reported(join.tables(), progress, lambda: join.expected)
            write_tables(tables, part, {ORIGIN_KEY.encode(): msgspec.json.encode(origin)})
            with ParquetFiles([part]) as table:
                inspect(table, join.rows, join.stale)
            content = written(INPUT_NAME)
        remove_file(folder / PARTED_INPUT_NAME)  # the Spark engine would mistake it for its own result
        return content

    def read_input_model(self, folder: Location) -> str:
        """See `Engine`."""
        file = folder / INPUT_NAME
        try:
            with file.open() as opened:
                return read_origin(pq.read_schema(opened), str(file)).model
        except (pa.ArrowInvalid, OSError) as error:
            raise unreadable(file, error) from None

    def write_output(
        self,
        folder: Location,
        serving: ServingModel,
        policy: Policy,
        inspect: InspectOutput = accept,
        progress: ReportRows = accept,
    ) -> Manifest:
        """See `Engine`. Memory does not grow with the number of rows."""
        give_back_memory()
        output = folder / OUTPUT_NAME
        # The manifest's part is opened first, so that an error there also prevents replacing the output.
        with (
            publishing(folder / MANIFEST_NAME) as manifest,
            publishing(output) as part,
            hashing(part) as written,
            scratch_folder() as scratch,
        ):
            origin, summary = _write_scored(folder / INPUT_NAME, serving, policy, part, scratch, inspect, progress)
            ours = Manifest(written(OUTPUT_NAME), origin, summary)
            manifest.write_bytes(as_json(ours))
        return settle_manifest(output, ours)


def _write_scored(
    source: Location,
    serving: ServingModel,
    policy: Policy,
    part: Path,
    scratch: Path,
    inspect: InspectOutput,
    progress: ReportRows,
) -> tuple[Origin, ScoringSummary]:
    try:
        with contextlib.ExitStack() as stack:
            try:
                held = stack.enter_context(holding(source, scratch / source.name))
                opened = pq.ParquetFile(held.file, pre_buffer=False, page_checksum_verification=True)
            except OSError as error:
                raise unreadable(source, error) from None
            schema = stack.enter_context(opened).schema_arrow
            origin = check_made_for(str(source), schema, serving.model, serving.features)
            scoring = TableScorer(serving.model, serving.features, policy)
            total = opened.metadata.num_rows
            rows = write_tables(
                _reported(scoring.scored(_tables(opened, source)), progress, lambda: total),
                part,
                schema.metadata,
                lambda: {SUMMARY_KEY: msgspec.json.encode(scoring.summary(held.content())).decode()},
                CONSTANTS,
            )
            _check_rows(part, total, rows)
            summary = scoring.summary(held.content())
            with ParquetFiles([part]) as table:
                inspect(table, summary)
            return origin, summary
    except (pa.ArrowInvalid, StillWritten) as error:
        raise unreadable(source, error) from None


def _reported(tables: Iterator[pa.Table], progress: ReportRows, total: Callable[[], int]) -> Iterator[pa.Table]:
    done = 0
    for table in tables:
        yield table
        done += table.num_rows
        progress(done, total())


def _tables(opened: pq.ParquetFile, source: Location) -> Iterator[pa.Table]:
    if opened.metadata.num_rows == 0:
        yield no_rows(opened.schema_arrow)
    batches = opened.iter_batches(batch_size=ROWS_PER_BATCH)
    while True:
        try:
            batch = next(batches, None)
        except OSError as error:  # a read error, which the caller would mistake for a write error
            raise unreadable(source, error) from None
        if batch is None:
            return
        yield pa.Table.from_batches([batch])


def check_made_for(place: str, schema: pa.Schema, model: Model, features: ModelFeatures) -> Origin:
    """Return the origin in the schema of the batch input at `place`.

    Raises:
        BatchRequestError: it is for another model version or feature service, lacks an input, or has a column with the
            name of one of the model's outputs.
    """
    origin = read_origin(schema, place)
    if origin.model != str(model.version):
        raise BatchRequestError(
            place,
            f"it was made for model version {origin.model}, not for {model.version}: materialize batch_input again.",
        )
    if origin.feature_service != features.service:
        raise BatchRequestError(
            place,
            f"it was made from feature service {origin.feature_service!r}, and {model.version} now names "
            f"{features.service!r}: materialize batch_input again.",
        )
    for name, dtype in input_types(features).items():
        index = schema.get_field_index(name)
        if index < 0 or schema.field(index).type != dtype:
            problem = f"the model needs it as {dtype}: materialize batch_input again, for this model version."
            raise BatchRequestError(place, problem, column=name)
    if not model.outputs.single:  # a request column `prediction` was refused when the input was written
        outputs = {name.casefold() for name in model.outputs.names}
        for name in schema.names:
            if name.casefold() in outputs:
                problem = (
                    f"{model.version} has an output of this name: rename the column in the request or leave it out, "
                    "and materialize batch_input again."
                )
                raise BatchRequestError(place, problem, column=name)
    return origin


def _check_rows(part: Path, expected: int, scored: int) -> None:
    written = pq.read_metadata(part).num_rows
    if not expected == scored == written:
        raise StorageError("writing", str(part), f"{written} rows were written for {expected}; nothing was published")
