"""Writes the prediction log (`scoring.monitoring.prediction_log`) off the request path, in a thread of its own.

A request adds one small record. The thread makes rows of the records several times a second, and a file of the rows
after SERVING_PREDICTION_LOG_SECONDS or SERVING_PREDICTION_LOG_ROWS. If files can't be written, rows wait in memory, up
to a bound. What exceeds it is dropped, counted and reported in the log: no request waits or fails.
"""

import itertools
import operator
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.inference.micro_batch import PendingRequest
from api.model.model_slot import Served
from api.model.scorer import RowScores
from api.telemetry.drift import DriftMetrics
from scoring.errors import ServingError
from scoring.features.feature_store import definitions_read_by
from scoring.files.transfer import publishing
from scoring.foreign_errors import first_line
from scoring.monitoring.log_files import day_folder
from scoring.monitoring.prediction_log import LOG_DATE, LoggedBatch, LoggedRequest, LogSchema, in_sample
from scoring.predict import Policy
from scoring.settings import Settings

log = structlog.get_logger(__name__)

PREFIX = "serving_prediction_log_"
# Between two conversions of records to rows. Shorter ones hold the interpreter's lock for less time each.
CONVERT_EVERY_S = 0.25
# Records wait for the next conversion only, unless that fails to keep up.
MAX_RECORDED_ROWS = 50_000
# Rows that wait while files can't be written, in files.
FILES_IN_MEMORY = 3
LONGEST_PAUSE_S = 30.0


class Record(msgspec.Struct, frozen=True, gc=False):
    """What the log keeps of a request until its rows are made."""

    served: Served
    pending: PendingRequest
    request: LoggedRequest
    ended_at: float
    """Seconds since 1970."""


SERVED, BATCH = operator.attrgetter("served"), operator.attrgetter("pending.batch")


class PredictionLog(Collector):
    """The log of one process. `add` is called on the event loop; it is also a collector of its metrics."""

    def __init__(self, settings: Settings) -> None:
        """Write nothing yet. `settings.prediction_log` is set."""
        assert settings.prediction_log is not None  # noqa: S101 - for the type checker
        self._drift = DriftMetrics()
        self._folder = settings.prediction_log
        self._seconds = settings.prediction_log_seconds
        self._file_rows = settings.prediction_log_rows
        self._fraction = settings.prediction_log_sample
        self._role = settings.model_alias
        self._policy = Policy.from_settings(settings)
        self._records: deque[Record] = deque()
        self._recorded = 0
        """Rows that were added. This and the next are written by the event loop only."""
        self._not_recorded = 0
        """Rows that were not added, because too many waited."""
        self._converted = 0
        """Rows of the records that were taken from the queue. This and all below is written by the thread only."""
        self._from_other_threads: deque[tuple[LogSchema, pa.Table]] = deque()
        """Rows that another thread made."""
        self._current: tuple[Served, LogSchema] | None = None
        self._tables: list[tuple[LogSchema, pa.Table]] = []
        self._rows_in_memory = 0
        self._written = self._dropped = 0
        self._problem: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, within_s: float) -> None:
        """Write what is there, and stop the thread. Blocking."""
        self._stop.set()
        self._thread.join(within_s)
        if self._thread.is_alive():
            waiting = self._recorded - self._converted + self._rows_in_memory
            log.error("prediction_log_dropped", rows=waiting, reason=f"not written within {within_s:g} s")

    def add(
        self, served: Served, request_id: str, pending: PendingRequest, scores: RowScores | None, problem: str | None
    ) -> None:
        """Log a request that has ended, unless it is not in the sample."""
        if not in_sample(request_id, self._fraction):
            return
        if self._recorded - self._converted > MAX_RECORDED_ROWS:
            self._not_recorded += pending.rows
            return
        self._recorded += pending.rows
        outputs = reasons = None
        if scores is not None:
            outputs, reasons = scores.outputs, scores.reasons
        latency_ms = (time.perf_counter() - pending.queued_at) * 1e3
        request = LoggedRequest(request_id, pending.entity_rows, pending.rows, outputs, reasons, latency_ms, problem)
        self._records.append(Record(served, pending, request, time.time()))

    def add_rows(self, schema: LogSchema, rows: pa.Table) -> None:
        """Log rows that another thread made, with the columns that `schema` returned. Called by any thread."""
        self._from_other_threads.append((schema, rows))

    def schema(self, served: Served, role: str) -> LogSchema:
        """Return the columns of a version's rows. Called by any thread."""
        scorer = served.scorer
        return LogSchema(
            scorer.version,
            scorer.features,
            scorer.outputs,
            scorer.log_schema(),
            role=role,
            definitions=definitions_read_by(scorer.features),
            policy=self._policy,
        )

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client."""
        rows = CounterMetricFamily(PREFIX + "rows", "Rows of the prediction log, by result.", labels=("result",))
        rows.add_metric(("written",), self._written)
        rows.add_metric(("dropped",), self._dropped + self._not_recorded)
        yield rows
        waiting = self._recorded - self._converted + self._rows_in_memory
        yield GaugeMetricFamily(PREFIX + "waiting_rows", "Rows of the prediction log in memory.", waiting)
        yield from self._drift.collect()

    def _run(self) -> None:
        oldest, next_try, pause_s, refused = None, 0.0, 1.0, 0
        while True:
            stopping = self._stop.wait(CONVERT_EVERY_S)
            self._convert()
            if self._not_recorded > refused:
                log.error(
                    "prediction_log_dropped",
                    rows=self._not_recorded - refused,
                    reason="rows arrived faster than they could be converted",
                )
                refused = self._not_recorded
            now = time.monotonic()
            oldest = None if not self._rows_in_memory else oldest or now
            due = oldest is not None and (self._rows_in_memory >= self._file_rows or now - oldest >= self._seconds)
            if self._rows_in_memory and (stopping or (due and now >= next_try)):
                if self._write():
                    oldest, pause_s, next_try = None, 1.0, 0.0
                else:
                    next_try, pause_s = now + pause_s, min(2 * pause_s, LONGEST_PAUSE_S)
            if next_try > now:
                self._make_room()
            if stopping:
                self._drop(self._rows_in_memory)
                return

    def _convert(self) -> None:
        """Make rows of the records, and take those that are made."""
        for _ in range(len(self._from_other_threads)):
            self._take(*self._from_other_threads.popleft())
        records = [self._records.popleft() for _ in range(len(self._records))]
        for served, of_version in itertools.groupby(records, SERVED):
            group = list(of_version)
            rows = sum(record.pending.rows for record in group)
            try:
                self._make_rows(self._schema(served), group)
            except Exception as error:  # the thread must survive any error
                self._report(f"rows could not be converted ({type(error).__name__}: {first_line(str(error))})")
                self._dropped += rows
            self._converted += rows

    def _make_rows(self, schema: LogSchema, records: list[Record]) -> None:
        """Make rows of records of one version. A record that can't be converted does not affect the others."""
        try:
            table = schema.table(list(_batches(records)))
        except Exception as error:  # a refused request may have values that no Arrow type can hold
            if len(records) == 1:
                self._report(f"rows could not be converted ({type(error).__name__})")  # its message may quote a value
                self._dropped += records[0].pending.rows
                return
            middle = len(records) // 2
            self._make_rows(schema, records[:middle])
            self._make_rows(schema, records[middle:])
        else:
            self._take(schema, table)

    def _take(self, schema: LogSchema, table: pa.Table) -> None:
        self._tables.append((schema, table))
        self._rows_in_memory += table.num_rows

    def _schema(self, served: Served) -> LogSchema:
        if self._current is None or self._current[0] is not served:
            self._current = served, self.schema(served, self._role)
            self._drift.follow(served)
        return self._current[1]

    def _write(self) -> bool:
        """Write all rows, one file for each version and day. Return whether that succeeded."""
        try:
            while self._tables:
                schema = self._tables[0][0]
                rows = pa.concat_tables([table for each, table in self._tables if each is schema])
                of_day = pc.equal(rows[LOG_DATE], rows[LOG_DATE][0])
                written, rest = rows, rows.slice(0, 0)
                if not pc.all(of_day).as_py():
                    written, rest = rows.filter(of_day), rows.filter(pc.invert(of_day))
                self._write_file(written)
                self._measure(schema, written)
                others = [(each, table) for each, table in self._tables if each is not schema]
                self._tables = [*([(schema, rest)] if rest.num_rows else []), *others]
                self._rows_in_memory -= written.num_rows
                self._written += written.num_rows
        except (ServingError, OSError, pa.ArrowException) as error:
            self._report(str(error) if isinstance(error, ServingError) else first_line(error))
            return False
        self._report(None)
        return True

    def _write_file(self, rows: pa.Table) -> None:
        model = f"{rows['model_name'][0].as_py()}-{rows['model_version'][0].as_py()}"
        place = day_folder(self._folder, str(rows[LOG_DATE][0])) / f"{model}-{uuid.uuid4().hex}.parquet"
        schema = rows.schema
        options: dict[str, Any] = {
            "compression": "zstd",
            "use_dictionary": [field.name for field in schema if not pa.types.is_floating(field.type)],
            "store_schema": False,  # so that readers get dictionaries of constants as plain columns
        }
        with publishing(place) as part, pq.ParquetWriter(part, schema, **options) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata(schema.metadata)

    def _measure(self, schema: LogSchema, rows: pa.Table) -> None:
        if self._current is None or self._current[1] is not schema:
            return
        try:
            self._drift.add(self._current[0], rows)
        except Exception as error:  # the thread must survive any error, also of a crafted baseline
            log.warning("drift_not_measured", reason=type(error).__name__)

    def _make_room(self) -> None:
        """Drop the oldest rows beyond the bound."""
        while self._rows_in_memory > FILES_IN_MEMORY * self._file_rows:
            _, table = self._tables.pop(0)
            self._dropped += table.num_rows
            self._rows_in_memory -= table.num_rows

    def _drop(self, rows: int) -> None:
        self._dropped += rows
        self._rows_in_memory -= rows
        if rows:
            log.error("prediction_log_dropped", rows=rows, reason=self._problem)

    def _report(self, problem: str | None) -> None:
        """Log a change of state."""
        if problem is not None and self._problem is None:
            log.error("prediction_log_failed", reason=problem, dropped=self._dropped)
        elif problem is None and self._problem is not None:
            log.info("prediction_log_recovered", dropped=self._dropped)
        self._problem = problem


def _batches(records: list[Record]) -> Iterator[LoggedBatch]:
    """Yield the records by the micro-batches that they were looked up in, each in one part if it is complete."""
    for batch, part in itertools.groupby(records, BATCH):
        group = list(part)
        read = None if batch is None or batch.online is None else batch.online.read
        if batch is None or [record.pending for record in group] != list(batch.requests):
            for record in group:
                as_of = datetime.fromtimestamp(record.ended_at, UTC) if batch is None else batch.as_of
                own = read and read.slice(record.pending.start, record.pending.rows)
                yield LoggedBatch([record.request], as_of, own)
        else:
            yield LoggedBatch([record.request for record in group], batch.as_of, read)
