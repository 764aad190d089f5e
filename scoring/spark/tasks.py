"""The Python functions of Spark's executors, which read and write the parts of a request, one task per part.

`DataFrame.mapInArrow` pickles the functions. Executors access requests and results like the driver, in a shared folder
or in S3. A repeated task writes the same bytes.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.batch.join import complete
from scoring.batch.scored_rows import CONSTANTS, count_reasons, with_scores
from scoring.errors import FeaturesRejected, FeatureStoreError
from scoring.feast_plugins.join_keys import ROW
from scoring.features.model_features import ModelFeatures, reasons_from_nulls
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, RowsInTurn, write_tables
from scoring.files.transfer import Content, content_of, publishing
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion
from scoring.predict import MODEL_FAILED, NOT_FINITE, Scores
from scoring.spark.model import decode_scores, encode_vectors

if TYPE_CHECKING:
    from scoring.features.on_demand_views import OnDemandViews

PART = "part__"
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


WRITTEN = "written string"


def read_written(rows: Iterable[Any]) -> list[Written]:
    """Return the parts that the tasks of a job wrote, in order."""
    return sorted((msgspec.json.decode(row[0], type=Written) for row in rows), key=lambda each: each.part)


class ReadEntityRows(msgspec.Struct, frozen=True):
    """Reads keys, event timestamps and row numbers of the parts with the given numbers."""

    request: Location
    columns: tuple[str, ...]
    rows_per_part: int

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        with ParquetFiles([self.request]) as file:
            for part in _numbers(batches):
                row = part * self.rows_per_part
                for table in file.between(row, row + self.rows_per_part, self.columns):
                    numbers = pa.array(range(row, row + table.num_rows), pa.int64())
                    # Remove the zone: Spark would pass the first and the last timestamp to Feast in the driver's zone
                    # (feast 0.67).
                    timestamps = pc.cast(pc.cast(table[EVENT_TIMESTAMP], pa.int64()), pa.timestamp("us"))
                    index = table.column_names.index(EVENT_TIMESTAMP)
                    entity_rows = table.set_column(index, EVENT_TIMESTAMP, timestamps).append_column(ROW, numbers)
                    yield from entity_rows.to_batches()
                    row += table.num_rows


class WriteInputParts(msgspec.Struct, frozen=True):
    """Writes the parts of batch_input from Feast's result, sorted by row number, with whole parts in each task."""

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
        results = _split(_without_repeats(pa.Table.from_batches([batch]) for batch in batches), self.rows_per_part)
        for part, tables in itertools.groupby(results, lambda pair: pair[0]):
            yield _report(self.write(part, (table for _, table in tables)))

    def write(self, part: int, results: Iterable[pa.Table]) -> Written:
        """Write one part from Feast's result for its rows.

        Raises:
            FeatureStoreError: the result lacks a row.
        """
        first = part * self.rows_per_part
        with ParquetFiles([self.request]) as file, _part(self.folder, self.name, part) as (path, name):
            own = RowsInTurn(file.between(first, min(first + self.rows_per_part, self.rows)), file.schema)
            rows = write_tables(self._completed(first, own, results), path, self.metadata)
            return Written(part, content_of(path, name), rows)

    def _completed(self, row: int, own: RowsInTurn, results: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for result in results:
            if not result[ROW].equals(pa.chunked_array([pa.array(range(row, row + result.num_rows), pa.int64())])):
                raise FeatureStoreError(
                    f"joining features of service {self.features.service!r}", f"rows are missing after row {row}"
                )
            row += result.num_rows
            mine, joined = own.take(result.num_rows), result.drop_columns([ROW])
            if self.on_demand is not None:
                for name in self.features.request_columns:
                    joined = joined.append_column(name, mine[name])
                joined = self.on_demand.add(self.on_demand.declared(joined))
            yield complete(self.features, mine, joined)


class ReadVectors(msgspec.Struct, frozen=True):
    """Reads the feature vectors of the parts with the given numbers, encoded for `scoring.spark.model`."""

    parts: tuple[Location, ...]
    features: ModelFeatures

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        for part in _numbers(batches):
            with ParquetFiles([self.parts[part]]) as file:
                for vectors in file.between(0, file.rows, self.features.signature.names):
                    ordered = self.features.written_vectors(vectors)
                    encoded = encode_vectors(ordered, reasons_from_nulls(self.features, ordered))
                    numbers = pa.array([part], pa.int32()).take(pa.array([0] * ordered.num_rows))
                    yield from encoded.append_column(PART, numbers).combine_chunks().to_batches()


class WriteOutputParts(msgspec.Struct, frozen=True):
    """Writes the parts of batch_output from scores in row order, with whole parts in each task."""

    parts: tuple[Location, ...]
    before: tuple[int, ...]
    """Cumulative row counts."""
    version: ModelVersion
    outputs: Outputs
    service: str
    folder: Location
    name: str

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """See the class; `batches` are those of one task."""
        tables = ((batch[PART][0].as_py(), pa.Table.from_batches([batch])) for batch in batches if batch.num_rows)
        for part, of_part in itertools.groupby(tables, lambda pair: pair[0]):
            yield _report(self.write(part, (table for _, table in of_part)))

    def write(self, part: int, scored: Iterable[pa.Table]) -> Written:
        """Write one part from the columns of `scores_schema` of its rows."""
        counts: Counter[str] = Counter()
        offending: list[tuple[int, str]] = []
        failed: int | None = None
        predicted = 0

        def tables() -> Iterator[pa.Table]:
            nonlocal predicted, failed
            row = self.before[part]
            for each in scored:
                scores = decode_scores(each, self.outputs)
                predicted += scores.predicted
                counts.update(count_reasons(scores))
                offending.extend(_first_offending(scores, row, OFFENDING_PER_PART - len(offending)))
                if failed is None and (place := pc.index(scores.reasons, MODEL_FAILED).as_py()) >= 0:
                    failed = row + place
                yield with_scores(own.take(each.num_rows), scores, self.version, self.service)
                row += each.num_rows

        with ParquetFiles([self.parts[part]]) as file, _part(self.folder, self.name, part) as (path, name):
            own = RowsInTurn(file.between(0, file.rows), file.schema)
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


def _without_repeats(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yield only the first of consecutive rows with the same number. Feast's query returns a row several times if the
    source has several rows with the same key and time (feast 0.67)."""
    last = -1
    for table in tables:
        numbers = table[ROW].to_numpy()
        new = np.diff(numbers, prepend=last) != 0
        last = numbers[-1] if len(numbers) else last
        yield table if new.all() else table.filter(pa.array(new))


def _split(tables: Iterable[pa.Table], rows_per_part: int) -> Iterator[tuple[int, pa.Table]]:
    """Split tables sorted by row number at the ends of parts. Yield each with its part's number."""
    for table in tables:
        parts = table[ROW].to_numpy() // rows_per_part
        bounds = [0, *(np.flatnonzero(parts[1:] != parts[:-1]) + 1).tolist(), len(parts)]
        for start, stop in itertools.pairwise(bounds):
            if start < stop:
                yield int(parts[start]), table.slice(start, stop - start)


def _first_offending(scores: Scores, row: int, wanted: int) -> list[tuple[int, str]]:
    if wanted <= 0 or scores.reasons.null_count == len(scores.reasons):
        return []
    incomplete = pc.invert(pc.is_in(scores.reasons, pa.array([None, NOT_FINITE, MODEL_FAILED], pa.string())))
    places = np.flatnonzero(incomplete.to_numpy(zero_copy_only=False))[:wanted]
    return [(row + int(place), scores.reasons[int(place)].as_py()) for place in places]
