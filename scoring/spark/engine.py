"""The batch engine for requests that outgrow one machine: Feast's Spark store joins, mlflow.pyfunc.spark_udf predicts.

A request's rows are split into parts, in the request's order, each processed by one task. The functions that determine
a row's values, types, reason and prediction are those of the local engine.
"""

import contextlib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import msgspec
import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException, PythonException
from pyspark.sql import functions as sf

from scoring import errors
from scoring.batch.engine import InspectInput, InspectOutput, ReportRows, accept, check_made_for
from scoring.batch.generations import (
    INPUT_PARTS,
    OUTPUT_PARTS,
    PartedInput,
    generation,
    publish_input,
    publish_output,
    read_parted_input,
    remove_file,
    whole,
)
from scoring.batch.manifest import MANIFEST_NAME, ORIGIN_KEY, PARTED_INPUT_NAME, Manifest, Origin, ScoringSummary
from scoring.batch.request import RequestCopy, read_batch_request
from scoring.batch.scored_rows import summarize
from scoring.errors import (
    BatchRequestError,
    EngineError,
    FeaturesRejected,
    FeatureStoreError,
    PredictionFailed,
    first_line,
)
from scoring.features.model_features import ModelFeatures
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, write_tables
from scoring.files.transfer import Content, publishing
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion
from scoring.predict import MODEL_FAILED, NOT_FINITE, Policy, failed_on_all
from scoring.serving import ServingModel
from scoring.settings import Settings
from scoring.spark.join import write_joined_parts
from scoring.spark.model import REASON, encode_vectors, save_served_model, scores_schema
from scoring.spark.session import start_spark
from scoring.spark.tasks import PART, WRITTEN, ReadVectors, WriteInputParts, WriteOutputParts, Written, read_written

if TYPE_CHECKING:
    from feast import FeatureStore
    from pyspark.sql import SparkSession


class SparkEngine:
    """Implements `scoring.engine.Engine` on Spark. Executors must have access to the artifacts and to this package."""

    input_name, output_name = PARTED_INPUT_NAME, MANIFEST_NAME  # both files list the parts

    def __init__(self, master: str, configuration: Mapping[str, str], rows_per_part: int) -> None:
        """Store the arguments; Spark starts lazily."""
        self._master = master
        self._configuration = configuration
        self._rows_per_part = rows_per_part

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the engine that the settings describe."""
        return cls(settings.spark_master, settings.spark_conf, settings.spark_rows_a_part)

    @functools.cached_property
    def _spark(self) -> "SparkSession":
        return start_spark(self._master, self._configuration)

    def stop(self) -> None:
        """End the Spark session, if there is one. The engine can't be used after that."""
        if "_spark" in vars(self):
            self._spark.stop()

    def write_input(
        self,
        request: RequestCopy,
        origin: Origin,
        store: "FeatureStore",
        features: ModelFeatures,
        folder: Location,
        inspect: InspectInput = accept,
        progress: ReportRows = accept,  # noqa: ARG002 - Spark reports stages, not rows
    ) -> Content:
        """See `Engine`. This process reads and checks the request; Spark joins and writes."""
        with generation(folder, INPUT_PARTS) as name:
            typed = folder / name / "request.parquet"
            with publishing(typed) as part:
                rows = write_tables(read_batch_request(request.file, features, request.place), part, {})
            metadata = {ORIGIN_KEY.encode(): msgspec.json.encode(origin)}
            write = WriteInputParts(typed, features, rows, self._rows_per_part, metadata, folder, name)
            with _translated(f"joining features of service {features.service!r}"):
                parts = [each.content for each in write_joined_parts(self._spark, store, write)]
            remove_file(typed)
            with ParquetFiles([folder / part.name for part in parts]) as table:
                inspect(table, rows, {})
            return publish_input(folder, origin, rows, parts)

    def read_input_model(self, folder: Location) -> str:
        """See `Engine`."""
        return read_parted_input(folder).origin.model

    def write_output(
        self,
        folder: Location,
        serving: ServingModel,
        policy: Policy,
        inspect: InspectOutput = accept,
        progress: ReportRows = accept,  # noqa: ARG002
    ) -> Manifest:
        """See `Engine`."""
        joined = read_parted_input(folder)
        sources = tuple(folder / part.name for part in joined.parts)
        rows = _check_parts(sources, str(folder / PARTED_INPUT_NAME), serving)
        with generation(folder, OUTPUT_PARTS) as name:
            before = tuple(itertools.accumulate(rows, initial=0))
            service = serving.features.service
            model = serving.model
            write = WriteOutputParts(sources, before, model.version, model.outputs, service, folder, name)
            written = self._score(write, serving, policy)
            summary = _summary(joined, model.outputs, policy, written)
            _check_reasons(serving.model.version, policy, summary, written)
            parts = tuple(each.content for each in written)
            if [each.rows for each in written] != rows or summary.rows != joined.rows:
                raise EngineError(f"{summary.rows} rows were written for {joined.rows}; nothing was published.")
            with ParquetFiles([folder / part.name for part in parts]) as table:
                inspect(table, summary)
            manifest = Manifest(whole(OUTPUT_PARTS, parts), joined.origin, summary, parts)
            publish_output(folder, manifest)
            return manifest

    def _score(self, write: WriteOutputParts, serving: ServingModel, policy: Policy) -> list[Written]:
        from mlflow.pyfunc import spark_udf

        model, count = serving.model, len(write.parts)
        if write.before[-1] == 0:
            none = model.outputs.schema.empty_table()
            scores = none.rename_columns([f"p{place}" for place in range(none.num_columns)])
            return [write.write(0, [scores.append_column(REASON, pa.nulls(0, pa.int32()))])]
        columns = encode_vectors(model.signature.schema.empty_table(), pa.nulls(0, pa.string())).schema
        schema = ", ".join(f"{field.name} {_ddl(field.type)}" for field in columns)
        with scratch_folder() as scratch, _translated(f"scoring with {model.version}", str(model.version)):
            returned = scores_schema(model.outputs)
            predict = spark_udf(self._spark, str(save_served_model(scratch, serving, policy)), returned, "local")
            read = ReadVectors(write.parts, serving.features)
            vectors = self._spark.range(count, numPartitions=count).mapInArrow(read, f"{schema}, {PART} int")
            scored = vectors.select(PART, predict(sf.struct(*columns.names)).alias("scored"))
            scored = scored.select(PART, "scored.*")
            return read_written(scored.mapInArrow(write, WRITTEN).collect())


def _check_parts(parts: Sequence[Location], place: str, serving: ServingModel) -> list[int]:
    """Check the parts of the input at `place` with `check_made_for`, and return their numbers of rows."""
    rows: list[int] = []
    try:
        for part in parts:
            with ParquetFiles([part]) as file:
                if not rows:
                    check_made_for(place, file.schema, serving.model, serving.features)
                rows.append(file.rows)
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        problem = f"a part of it can't be read ({first_line(error)}): materialize batch_input again."
        raise BatchRequestError(place, problem) from None
    return rows


def _summary(joined: PartedInput, outputs: Outputs, policy: Policy, written: list[Written]) -> ScoringSummary:
    reasons = sum((Counter(each.reasons) for each in written), Counter[str]())
    rows, scored = sum(each.rows for each in written), sum(each.scored for each in written)
    return summarize(joined.batch_input, outputs, policy, rows, scored, reasons)


def _check_reasons(version: ModelVersion, policy: Policy, summary: ScoringSummary, written: list[Written]) -> None:
    """Raise the error that the local engine raises for these reasons."""
    reasons = summary.reasons
    incomplete = sum(reasons.values()) - reasons.get(NOT_FINITE, 0) - reasons.get(MODEL_FAILED, 0)
    if policy.kind == "reject" and incomplete:
        offending = [(f"row {row + 1}", reason) for each in written for row, reason in each.offending]
        raise FeaturesRejected(offending, incomplete)
    first = next((each.first_failed for each in written if each.first_failed is not None), None)
    if first is not None and (policy.kind == "reject" or failed_on_all(summary.scored, reasons)):
        problem = f"it failed on {reasons[MODEL_FAILED]} of {summary.rows} rows; of these, row {first + 1} is the first"
        raise PredictionFailed(str(version), f"{problem}. The logs of Spark's executors have its messages")


def _ddl(dtype: pa.DataType) -> str:
    from pyspark.sql.pandas.types import from_arrow_type

    return str(from_arrow_type(dtype).simpleString())


@contextlib.contextmanager
def _translated(doing: str, version: str | None = None) -> Iterator[None]:
    """Translate errors of Spark and of Python on its executors; `version` is set for scoring."""
    try:
        yield
    except PySparkException as error:
        # The last line of an executor's traceback. A message from other code may contain feature values.
        lines = re.findall(r"^(?:scoring\.errors\.)?(\w[\w.]*): (.*)$", str(error), re.MULTILINE)
        kind, message = (
            lines[-1] if lines and isinstance(error, PythonException) else (type(error).__name__, str(error))
        )
        ours = hasattr(errors, kind)
        if version is None:
            raise FeatureStoreError(doing, message if ours else f"{kind}: {message}") from error
        if kind in {"PredictionFailed", "ModelRefused"}:
            raise PredictionFailed(version, message.partition(": ")[2]) from error
        raise EngineError(f"Spark failed while {doing}: {message if ours else kind}") from error
    except Py4JJavaError as error:
        # str(error) is the call and the whole Java stack trace. A message from the driver contains no rows.
        thrown = error.java_exception
        message = f"{thrown.getClass().getSimpleName()}: {first_line(str(thrown.getMessage()))}"
        if version is None:
            raise FeatureStoreError(doing, message) from error
        raise EngineError(f"Spark failed while {doing}: {message}") from error
