"""The batch engine for requests that outgrow one machine.

A request's rows are split into parts, in the request's order, each processed by one task. The functions that determine
a row's values, types, reason and prediction are those of the local engine.
"""

import contextlib
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Self

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException, PythonException

from scoring import errors
from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.batch.callbacks import InspectInput, InspectOutput, ReportRows, accept
from scoring.batch.engine import check_made_for
from scoring.batch.generations import (
    INPUT_PARTS,
    OUTPUT_PARTS,
    PartedInput,
    generation,
    publish_input,
    publish_output,
    read_parted_input,
    whole,
)
from scoring.batch.manifest import MANIFEST_NAME, ORIGIN_KEY, PARTED_INPUT_NAME, Manifest, Origin, ScoringSummary
from scoring.batch.request import RequestCopy, read_batch_request
from scoring.batch.scored_rows import summarize
from scoring.errors import BatchRequestError, EngineError, FeaturesRejected, FeatureStoreError, PredictionFailed
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, write_tables
from scoring.files.transfer import Content, publishing, remove_file
from scoring.foreign_errors import first_line
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion
from scoring.predict import MODEL_FAILED, NOT_FINITE, Policy, failed_on_all
from scoring.serving import ServingModel
from scoring.settings import Settings
from scoring.spark.join import write_joined_parts
from scoring.spark.model import send_model
from scoring.spark.session import start_spark
from scoring.spark.tasks import WRITTEN, WriteInputParts, WriteOutputParts, Written, read_written

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
            latest = _Latest(read_batch_request(request.file, features, request.place))
            with publishing(typed) as part:
                rows = write_tables(latest, part, {})
            metadata = {ORIGIN_KEY.encode(): msgspec.json.encode(origin)}
            write = WriteInputParts(typed, features, rows, self._rows_per_part, metadata, folder, name)
            with _translated(f"joining features of service {features.service!r}"):
                written = write_joined_parts(self._spark, store, write, latest.us)
            remove_file(typed)
            parts = [each.content for each in written]
            with ParquetFiles([folder / part.name for part in parts]) as table:
                inspect(table, rows, _stale(features, written))
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
            written = self._score(sources, rows, serving, policy, folder, name)
            model = serving.model
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

    def _score(
        self,
        sources: Sequence[Location],
        rows: Sequence[int],
        serving: ServingModel,
        policy: Policy,
        folder: Location,
        name: str,
    ) -> list[Written]:
        """Score the rows of each source and write a part with them. Return the parts."""
        before = tuple(itertools.accumulate(rows, initial=0))
        version = str(serving.model.version)
        model = send_model(self._spark.sparkContext, serving)
        try:
            write = WriteOutputParts(tuple(sources), before, model, serving.features, policy, folder, name)
            if before[-1] == 0:
                return [write.write(0, serving.model)]
            with _translated(f"scoring with {version}", version):
                numbers = self._spark.range(len(sources), numPartitions=len(sources))
                return read_written(numbers.mapInArrow(write, WRITTEN).collect())
        finally:
            model.archive.destroy()


class _Latest:
    """Yields a request's tables, and then has their latest event timestamp, in microseconds since 1970."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self._tables = tables
        self.us = -(1 << 63)

    def __iter__(self) -> Iterator[pa.Table]:
        for table in self._tables:
            yield table
            latest = pc.max(table[EVENT_TIMESTAMP]).cast(pa.int64()).as_py()
            self.us = max(self.us, self.us if latest is None else latest)


def _stale(features: ModelFeatures, written: Iterable[Written]) -> dict[str, int]:
    """Return view with a time to live → the number of rows for which only expired feature rows were found."""
    counts = sum((Counter(each.stale) for each in written), Counter[str]())
    return {view.name: counts[view.name] for view in features.views if view.ttl_s is not None}


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
