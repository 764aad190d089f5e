"""The Python functions of Spark's executors, which read and write the parts of a request, one task per part.

`DataFrame.mapInArrow` pickles the functions. Executors access requests and results like the driver, in a shared folder
or in S3. A repeated task writes the same bytes.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.batch.join import no_features, with_inputs
from scoring.batch.scored_rows import CONSTANTS, count_reasons, with_scores
from scoring.errors import FeaturesRejected, FeatureStoreError
from scoring.feast_plugins.join_keys import NO_ENTITY
from scoring.features.model_features import ModelFeatures, reasons_from_nulls
from scoring.files.location import Location
from scoring.files.parquet import ROWS_PER_BATCH, ParquetFiles, RowsInTurn, no_rows, write_tables
from scoring.files.transfer import Content, content_of, publishing
from scoring.models.model import Model
from scoring.predict import MODEL_FAILED, NOT_FINITE, Policy, Scores, score
from scoring.spark.model import SentModel

if TYPE_CHECKING:
    from scoring.features.on_demand_views import OnDemandViews

# Columns of joined rows: microseconds since 1970, and the row's number in the request.
TIME, CREATED, ROW = "time", "created", "row"
STALE, FRESH = 1, 2
OFFENDING_PER_PART = FeaturesRejected.max_listed


class Written(msgspec.Struct, frozen=True):
    """A part that a task wrote."""

    part: int
    content: Content
    rows: int
    scored: int = 0
    reasons: dict[str, int] = {}
    offending: tuple[tuple[int, str], ...] = ()
    """The first rows with incomplete features, counted from 0 over all parts, with their reasons."""
    first_failed: int | None = None
    """The first row with the reason `model_failed`, also counted from 0 over all parts."""
    stale: dict[str, int] = {}
    """View → the number of rows for which only expired feature rows were found."""


WRITTEN = "written string"


def read_written(rows: Iterable[Any]) -> list[Written]:
    """Return the parts that the tasks of a job wrote, in order."""
    return sorted((msgspec.json.decode(row[0], type=Written) for row in rows), key=lambda each: each.part)


class ViewNames(NamedTuple):
    """The names that a feature view has in Spark, to which names that differ in case alone are equal."""

    place: int
    """Its place among the views of the model."""
    view: str
    state: str
    """The column that says whether the view has a row: FRESH, STALE or null."""
    keys: tuple[str, ...]
    """Its join keys, sorted by its own names."""
    features: tuple[str, ...]
    """Its columns, in the order of `View.columns`."""


def view_names(features: ModelFeatures) -> list[ViewNames]:
    """Return the names of the views that a model depends on, in their order."""
    keys = key_names(features)
    return [
        ViewNames(
            place,
            f"view_{place}",
            f"state_{place}",
            tuple(keys[key.name] for own, key in view.keys if own != NO_ENTITY),
            tuple(f"feature_{place}_{number}" for number in range(len(view.columns))),
        )
        for place, view in enumerate(features.views)
    ]


def key_names(features: ModelFeatures) -> dict[str, str]:
    """Return join key of a request → its name in Spark."""
    return {key.name: f"key_{place}" for place, key in enumerate(features.join_keys)}


class ReadEntityRows(msgspec.Struct, frozen=True):
    """Reads keys, event timestamps and row numbers of the parts with the given numbers."""

    request: Location
    keys: dict[str, str]
    rows_per_part: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        with ParquetFiles([self.request]) as file:
            for part in _numbers(batches):
                row = part * self.rows_per_part
                for table in file.between(row, row + self.rows_per_part, [*self.keys, EVENT_TIMESTAMP]):
                    columns = {name: table[key] for key, name in self.keys.items()}
                    columns[TIME] = pc.cast(table[EVENT_TIMESTAMP], pa.int64())
                    columns[ROW] = pa.array(np.arange(row, row + table.num_rows))
                    yield from pa.table(columns).to_batches()
                    row += table.num_rows


class ReadFeatures(msgspec.Struct, frozen=True):
    """Reads the pieces of a feature source with the given numbers: each is a query over the relation `file`, the schema
    of that relation and its row groups."""

    pieces: tuple[tuple[str, pa.Schema, list[ds.ParquetFileFragment]], ...]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        for number in _numbers(batches):
            query, schema, fragments = self.pieces[number]
            with duckdb.connect(config={"threads": 1}) as connection:
                connection.execute("SET TimeZone = 'UTC'")
                first = fragments[0]
                connection.register("file", ds.FileSystemDataset(fragments, schema, first.format, first.filesystem))
                yield from connection.sql(query).to_arrow_reader(ROWS_PER_BATCH)


class WriteInputParts(msgspec.Struct, frozen=True):
    """Writes a part of batch_input from joined rows, sorted by row number, with one part in each task."""

    request: Location
    features: ModelFeatures
    rows: int
    rows_per_part: int
    metadata: dict[bytes, bytes]
    folder: Location
    name: str
    on_demand: "OnDemandViews | None" = None
    """Adds on-demand features to the result."""

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        results = (pa.Table.from_batches([batch]) for batch in batches if batch.num_rows)
        for first in results:
            part = first[ROW][0].as_py() // self.rows_per_part
            yield _report(self.write(part, itertools.chain([first], results)))

    def write(self, part: int, results: Iterable[pa.Table] = ()) -> Written:
        """Write one part from ROW and the columns of `view_names` of its rows.

        Raises:
            FeatureStoreError: the result lacks a row.
        """
        first = part * self.rows_per_part
        stale: Counter[str] = Counter()
        with ParquetFiles([self.request]) as file, _part(self.folder, self.name, part) as (path, name):
            own = RowsInTurn(file.between(first, min(first + self.rows_per_part, self.rows)), file.schema)
            tables = self._completed(first, own, results, stale)
            if not self.rows:
                tables = iter([with_inputs(self.features, no_rows(file.schema), no_features(self.features))])
            rows = write_tables(tables, path, self.metadata)
            return Written(part, content_of(path, name), rows, stale=dict(stale))

    def _completed(
        self, row: int, own: RowsInTurn, results: Iterable[pa.Table], stale: Counter[str]
    ) -> Iterator[pa.Table]:
        for result in results:
            if not result[ROW].equals(pa.chunked_array([pa.array(np.arange(row, row + result.num_rows))])):
                raise FeatureStoreError(
                    f"joining features of service {self.features.service!r}", f"rows are missing after row {row}"
                )
            row += result.num_rows
            mine = own.take(result.num_rows)
            joined: dict[str, pa.ChunkedArray] = {}
            absent: dict[str, pa.ChunkedArray] = {}
            for view, names in zip(self.features.views, view_names(self.features), strict=True):
                joined |= dict(zip(view.columns, result.select(names.features).columns, strict=True))
                absent[view.name] = pc.fill_null(pc.not_equal(result[names.state], FRESH), True)
                stale[view.name] += pc.sum(pc.equal(result[names.state], STALE)).as_py() or 0
            if self.on_demand is None:
                yield with_inputs(self.features, mine, pa.table(joined))
                continue
            joined |= {name: mine[name] for name in self.features.request_columns}
            with_on_demand = self.on_demand.add(self.on_demand.declared(pa.table(joined)))
            yield with_inputs(self.features, mine, with_on_demand, absent)


class WriteOutputParts(msgspec.Struct, frozen=True):
    """Scores the parts of batch_input with the given numbers, and writes those of batch_output."""

    parts: tuple[Location, ...]
    before: tuple[int, ...]
    """Cumulative row counts."""
    model: SentModel
    features: ModelFeatures
    policy: Policy
    folder: Location
    name: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        for part in _numbers(batches):
            yield _report(self.write(part, self.model.load()))

    def write(self, part: int, model: Model) -> Written:
        """Score and write one part.

        Raises:
            PredictionFailed: see `scoring.predict.score`.
        """
        counts: Counter[str] = Counter()
        offending: list[tuple[int, str]] = []
        failed: int | None = None
        predicted = 0
        # A task has only its own rows, so that the driver must reject, based on the reasons of all tasks.
        policy = self.policy if self.policy.kind == "impute" else msgspec.structs.replace(self.policy, kind="exclude")

        def tables() -> Iterator[pa.Table]:
            nonlocal predicted, failed
            row = self.before[part]
            for rows in file.between(0, file.rows) if file.rows else [no_rows(file.schema)]:
                vectors = self.features.written_vectors(rows)
                scores = score(model, vectors, reasons_from_nulls(self.features, vectors), policy, str)
                predicted += scores.predicted
                counts.update(count_reasons(scores))
                offending.extend(_first_offending(scores, row, OFFENDING_PER_PART - len(offending)))
                if failed is None and (place := pc.index(scores.reasons, MODEL_FAILED).as_py()) >= 0:
                    failed = row + place
                yield with_scores(rows, scores, model.version, self.features.service)
                row += rows.num_rows

        with ParquetFiles([self.parts[part]]) as file, _part(self.folder, self.name, part) as (path, name):
            rows = write_tables(tables(), path, file.schema.metadata, constants=CONSTANTS)
            content = content_of(path, name)
        return Written(part, content, rows, predicted, dict(counts), tuple(offending), failed)


@contextlib.contextmanager
def _part(folder: Location, generation: str, part: int) -> Iterator[tuple[Path, str]]:
    """Provide a path to write a part to, and the name under which it is published when the block ends."""
    name = f"{generation}/part-{part:05d}.parquet"
    with publishing(folder / name) as path:
        yield path, name


def _numbers(batches: Iterator[pa.RecordBatch]) -> Iterator[int]:
    for batch in batches:
        yield from batch.column(0).to_pylist()


def _report(written: Written) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"written": [msgspec.json.encode(written).decode()]})


def _first_offending(scores: Scores, row: int, wanted: int) -> list[tuple[int, str]]:
    if wanted <= 0 or scores.reasons.null_count == len(scores.reasons):
        return []
    incomplete = pc.invert(pc.is_in(scores.reasons, pa.array([None, NOT_FINITE, MODEL_FAILED], pa.string())))
    places = np.flatnonzero(incomplete.to_numpy(zero_copy_only=False))[:wanted]
    return [(row + int(place), scores.reasons[int(place)].as_py()) for place in places]
