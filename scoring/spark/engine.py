"""The batch engine for requests past one machine: Feast's Spark store joins, `mlflow.pyfunc.spark_udf` predicts.

A request's rows come in parts, in the request's order, each the work of one task. What is decided about a row is
decided by the same functions as in the other engine: its values and types, its reason, the policy, the prediction.
"""

import contextlib
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Self

import msgspec
import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException, PythonException
from pyspark.sql import functions as sf

from scoring import errors
from scoring.batch.generations import (
    INPUT_PARTS,
    OUTPUT_PARTS,
    PARTED_INPUT,
    PartedInput,
    generation,
    publish_input,
    publish_output,
    read_parted_input,
    remove_file,
    whole,
)
from scoring.batch.manifest import MANIFEST_NAME, ORIGIN_KEY, Manifest, Origin, ScoringSummary, software_versions
from scoring.batch.pipeline import InspectInput, InspectOutput, accept, check_made_for, fetch_file
from scoring.batch.request import read_batch_request
from scoring.errors import (
    BatchRequestError,
    EngineError,
    FeaturesRejected,
    FeatureStoreError,
    PredictionFailed,
    first_line,
)
from scoring.features.feature_store import read_definitions
from scoring.features.model_features import ModelFeatures
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, write_tables
from scoring.files.transfer import Content, publishing
from scoring.predict import NOT_FINITE, Policy
from scoring.serving import ServingModel
from scoring.settings import Settings
from scoring.spark.join import write_joined_parts
from scoring.spark.model import SCORES, encode_vectors, save_served_model
from scoring.spark.session import start_spark
from scoring.spark.tasks import PART, WRITTEN, ReadVectors, WriteInputParts, WriteOutputParts, Written, read_written

if TYPE_CHECKING:
    from feast import FeatureStore
    from pyspark.sql import SparkSession


class SparkEngine:
    """`scoring.engine.Engine` on Spark. Executors must reach the artifacts and import this package."""

    def __init__(self, master: str, configuration: Mapping[str, str], rows_a_part: int) -> None:
        """Remember where Spark runs; nothing is started yet."""
        self._master = master
        self._configuration = configuration
        self._rows_a_part = rows_a_part

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The engine that the settings describe."""
        return cls(settings.spark_master, settings.spark_conf, settings.spark_rows_a_part)

    @functools.cached_property
    def _spark(self) -> "SparkSession":
        return start_spark(self._master, self._configuration)

    def stop(self) -> None:
        """End the Spark session, if there is one. The engine can't be used any more."""
        if "_spark" in vars(self):
            self._spark.stop()

    def input_place(self, folder: Location) -> Location:
        """batch_input.json, which names the parts."""
        return folder / PARTED_INPUT

    def output_place(self, folder: Location) -> Location:
        """manifest.json, which names the parts."""
        return folder / MANIFEST_NAME

    def write_input(
        self,
        request: Location,
        store: "FeatureStore",
        model: str,
        features: ModelFeatures,
        folder: Location,
        inspect: InspectInput = accept,
    ) -> Content:
        """See `Engine`. The request is read and checked here; what is joined and written is Spark's."""
        definitions = read_definitions(store).hash
        with generation(folder, INPUT_PARTS) as name:
            typed = folder / name / "request.parquet"
            with scratch_folder() as scratch, publishing(typed) as part:
                copy = scratch / request.name
                origin = Origin(fetch_file(request, copy), model, features.service, definitions)
                rows = write_tables(read_batch_request(copy, features, str(request)), part, {})
            metadata = {ORIGIN_KEY.encode(): msgspec.json.encode(origin)}
            write = WriteInputParts(typed, features, rows, self._rows_a_part, metadata, folder, name)
            with _telling(f"joining features of service {features.service!r}"):
                written = write_joined_parts(self._spark, store, write)
            remove_file(typed)
            parts = [each.content for each in written]
            with ParquetFiles([folder / part.name for part in parts]) as table:
                inspect(table, rows, {})
            return publish_input(folder, origin, rows, parts)

    def read_input_model(self, folder: Location) -> str:
        """See `Engine`."""
        return read_parted_input(folder).origin.model

    def write_output(
        self, folder: Location, serving: ServingModel, policy: Policy, inspect: InspectOutput = accept
    ) -> Manifest:
        """See `Engine`."""
        joined = read_parted_input(folder)
        shown = str(folder / PARTED_INPUT)
        places = tuple(folder / part.name for part in joined.parts)
        with _reading(shown), ParquetFiles(places[:1]) as first:
            check_made_for(shown, first.schema, serving.model, serving.features)
        with generation(folder, OUTPUT_PARTS) as name:
            written = self._score(joined, places, serving, policy, (folder, name))
            if policy.kind == "reject":
                _reject(written)
            outcome = _outcome(joined, policy, written)
            parts = tuple(each.content for each in written)
            if [each.rows for each in written] != _rows_of(places) or outcome.rows != joined.rows:
                raise EngineError(f"{outcome.rows} rows were written for {joined.rows}; nothing was published.")
            with ParquetFiles([folder / part.name for part in parts]) as table:
                inspect(table, outcome)
            manifest = Manifest(whole(OUTPUT_PARTS, parts), joined.origin, outcome, parts)
            publish_output(folder, manifest)
            return manifest

    def _score(
        self,
        joined: PartedInput,
        places: tuple[Location, ...],
        serving: ServingModel,
        policy: Policy,
        destination: tuple[Location, str],
    ) -> list[Written]:
        from mlflow.pyfunc import spark_udf

        model = serving.model
        rows = _rows_of(places)
        before = tuple(sum(rows[:i]) for i in range(len(rows)))
        write = WriteOutputParts(places, before, model.version, serving.features.service, *destination)
        if joined.rows == 0:
            return [
                write.write(0, [pa.table({"prediction": pa.nulls(0, pa.float64()), "reason": pa.nulls(0, pa.int32())})])
            ]
        none = encode_vectors(model.signature.schema.empty_table(), pa.nulls(0, pa.string()))
        inputs = none.column_names
        schema = ", ".join(f"{field.name} {_ddl(field.type)}" for field in none.schema)
        with scratch_folder() as scratch, _telling(f"scoring with {model.version}", str(model.version)):
            predict = spark_udf(self._spark, str(save_served_model(scratch, serving, policy)), SCORES, "local")
            read = ReadVectors(places, serving.features)
            vectors = self._spark.range(len(places), numPartitions=len(places)).mapInArrow(
                read, f"{schema}, {PART} int"
            )
            scored = vectors.select(PART, predict(sf.struct(*inputs)).alias("scored"))
            scored = scored.select(PART, "scored.prediction", "scored.reason")
            return read_written(scored.mapInArrow(write, WRITTEN).collect())


def _outcome(joined: PartedInput, policy: Policy, written: list[Written]) -> ScoringSummary:
    reasons: Counter[str] = Counter()
    for each in written:
        reasons.update(each.reasons)
    return ScoringSummary(
        batch_input=joined.batch_input,
        missing_features=policy.kind,
        impute_values=dict(sorted(policy.impute_values.items())),
        rows=sum(each.rows for each in written),
        scored=sum(each.scored for each in written),
        reasons=dict(sorted(reasons.items())),
        software=dict(software_versions()),
    )


def _reject(written: list[Written]) -> None:
    total = sum(count for each in written for reason, count in each.reasons.items() if reason != NOT_FINITE)
    if total:
        offending = [(f"row {row + 1}", reason) for each in written for row, reason in each.offending]
        raise FeaturesRejected(offending[: FeaturesRejected.max_listed], total)


def _rows_of(places: tuple[Location, ...]) -> list[int]:
    rows = []
    for place in places:
        with ParquetFiles([place]) as file:
            rows.append(file.rows)
    return rows


def _ddl(dtype: pa.DataType) -> str:
    from pyspark.sql.pandas.types import from_arrow_type

    return str(from_arrow_type(dtype).simpleString())


@contextlib.contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise BatchRequestError(
            shown, f"a part of it can't be read ({first_line(error)}): materialize batch_input again."
        ) from None


@contextlib.contextmanager
def _telling(doing: str, version: str | None = None) -> Iterator[None]:
    """Raise what went wrong in Spark, or in Python on its executors, as an error of ours."""
    try:
        yield
    except PySparkException as error:
        # The last line of a traceback on an executor; its words, if they are not ours, may hold feature values.
        lines = re.findall(r"^(?:scoring\.errors\.)?(\w[\w.]*): (.*)$", str(error), re.MULTILINE)
        kind, words = lines[-1] if lines and isinstance(error, PythonException) else (type(error).__name__, str(error))
        ours = hasattr(errors, kind)
        if version is None:
            raise FeatureStoreError(doing, words if ours else f"{kind}: {words}") from error
        if kind in {"PredictionFailed", "ModelRefused"}:
            raise PredictionFailed(version, words.partition(": ")[2]) from error
        raise EngineError(f"Spark failed while {doing}: {words if ours else kind}") from error
    except Py4JJavaError as error:
        # Its own text is the call and Java's whole trace. A message of the driver's holds no rows.
        thrown = error.java_exception
        kind, words = thrown.getClass().getSimpleName(), first_line(str(thrown.getMessage()))
        if version is None:
            raise FeatureStoreError(doing, f"{kind}: {words}") from error
        raise EngineError(f"Spark failed while {doing}: {kind}: {words}") from error
