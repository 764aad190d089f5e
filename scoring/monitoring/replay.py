"""Replays the prediction log: are the logged answers what batch computes as of the same time, to the bit?

The logged rows of one version become a batch request, whose event timestamps are the times as of which the API read
features. The batch engine joins and scores it with that exact version. Each row with another answer gets one cause.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from scoring.arrow.signature import EVENT_TIMESTAMP
from scoring.arrow.timestamps import TIMESTAMP
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import OUTPUT_NAME
from scoring.batch.request import RequestCopy, entity_columns
from scoring.engine import score_request
from scoring.errors import FeatureServiceNotFound, MissingFeatures, ModelNotRegistered, ModelRefused, VersionNotFound
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.parquet import ParquetFiles, write_tables
from scoring.files.transfer import content_of, publishing
from scoring.models.registry import Registry
from scoring.monitoring.log_files import LogFile, answered, fetch_log, logged_outputs, request_columns
from scoring.monitoring.prediction_log import LOG_TIMESTAMP, POLICY, REQUEST_ID, ROLE
from scoring.monitoring.replay_causes import CAUSES, DEFINITION_CHANGED, PREFIX, VERSION_GONE, ReplayComparison
from scoring.monitoring.replay_report import REPORT_SCHEMA, as_text, report_rows
from scoring.predict import Policy
from scoring.serving import ServingModel, load_serving_model
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

REPORTS = "_replay"
"""The folder of the reports, beside the days of the log."""


class ReplayReport(msgspec.Struct, frozen=True):
    """What a replay found."""

    rows: int
    """Logged rows of requests that were answered with scores."""
    unanswered: int
    """Logged rows of other requests, which are not replayed."""
    causes: dict[str, int]
    """Cause → rows with another answer, for each of CAUSES."""
    versions: dict[str, int]
    """`name/version` → its rows."""

    @property
    def different(self) -> int:
        """Return the number of rows with another answer."""
        return sum(self.causes.values())


def report_file(log: Location, day: str) -> Location:
    """Return the report of one day (UTC) of the prediction log."""
    return log / REPORTS / f"{day}.parquet"


def replay(
    log: Location, settings: Settings, registry: Registry, store: "FeatureStore", report: Location
) -> ReplayReport:
    """Replay the files of a folder of the prediction log, and write the differences to `report`, a Parquet file.

    Raises:
        StorageError: a file can't be read, or the report can't be written.
        RegistryError, ModelRefused, FeatureStoreError: a version can't be loaded or joined, as in a batch run.
    """
    with scratch_folder() as scratch, publishing(report) as part, pq.ParquetWriter(part, REPORT_SCHEMA) as writer:
        logged = files_by_version(fetch_log(log, scratch))
        counts: Counter[str] = Counter()
        rows = unanswered = 0
        versions: Counter[str] = Counter()
        for (scored, _), files in logged.items():
            one = _ReplayOfVersion(settings, registry, store, scored, files)
            for differences in one.run():
                counts.update(differences["cause"].to_pylist())
                writer.write_table(differences.cast(REPORT_SCHEMA))
            rows += one.rows
            unanswered += one.unanswered
            versions[one.model] += one.rows
    return ReplayReport(rows, unanswered, {cause: counts[cause] for cause in CAUSES}, dict(versions))


Scored = tuple[str, int, str]
"""Model name, version, and the policy as JSON: what a row was scored with."""


def files_by_version(files: Iterable[LogFile]) -> dict[tuple[Scored, str], list[LogFile]]:
    """Return what the rows of each file were scored with, and its schema → the files.

    One version has several schemas if features were added to its feature service meanwhile.
    """
    found: dict[tuple[Scored, str], list[LogFile]] = {}
    for file in files:
        scored = file.constants["model_name"], file.constants["model_version"], file.constants[POLICY]
        found.setdefault((scored, str(file.schema.remove_metadata())), []).append(file)
    return found


class _ReplayOfVersion:
    """The replay of the rows of one version with one policy."""

    def __init__(
        self, settings: Settings, registry: Registry, store: "FeatureStore", scored: Scored, files: list[LogFile]
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._store = store
        self._name, self._version, policy = scored
        self.model = f"{self._name}/{self._version}"
        self._policy = msgspec.json.decode(policy, type=Policy)
        self._files = files
        self.rows = self.unanswered = 0

    def run(self) -> Iterator[pa.Table]:
        """Yield tables of REPORT_SCHEMA."""
        try:
            version = self._registry.version(self._name, self._version)
            serving = load_serving_model(self._registry, self._store, version, self._settings)
        except (VersionNotFound, ModelNotRegistered):
            yield from self._not_replayed(VERSION_GONE, "")
            return
        except (MissingFeatures, FeatureServiceNotFound) as error:
            yield from self._not_replayed(DEFINITION_CHANGED, str(error))
            return
        except ModelRefused as error:
            yield from self._not_replayed(VERSION_GONE, str(error))
            return
        columns = [name for name in entity_columns(serving.features) if name != EVENT_TIMESTAMP]
        if missing := [name for name in columns if name not in self._files[0].schema.names]:
            yield from self._not_replayed(DEFINITION_CHANGED, f"requests had no {', '.join(missing)}")
            return
        with scratch_folder() as scratch:
            request = scratch / "request.parquet"
            self.rows = write_tables(self._requests(columns), request, {})
            if self.rows:
                yield from self._compared(serving, request, Location(scratch / "result"))

    def _answered(self) -> Iterator[pa.Table]:
        for file in self._files:
            for rows in file.tables():
                found = answered(rows)
                self.unanswered += rows.num_rows - found.num_rows
                yield found

    def _requests(self, own: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the log's rows as those of a batch request, with the other columns under names of their own."""
        for rows in self._answered():
            columns = {name: rows[name] for name in own} | {EVENT_TIMESTAMP: rows[LOG_TIMESTAMP].cast(TIMESTAMP)}
            kept = {PREFIX + name: rows[name] for name in rows.column_names if name not in own}
            yield pa.table(columns | kept)

    def _not_replayed(self, cause: str, detail: str) -> Iterator[pa.Table]:
        for rows in self._answered():
            self.rows += rows.num_rows
            columns = {
                "request_id": rows[REQUEST_ID],
                "log_timestamp": rows[LOG_TIMESTAMP],
                "entity": as_text(rows, request_columns(rows.schema)),
                "model": self.model,
                "role": rows[ROLE],
                "logged": as_text(rows, logged_outputs(rows.schema)),
                "replayed": pa.nulls(rows.num_rows, pa.string()),
            }
            yield report_rows(columns, [cause] * rows.num_rows, [detail] * rows.num_rows)

    def _compared(self, serving: ServingModel, request: Path, folder: Location) -> Iterator[pa.Table]:
        copy = RequestCopy(request, str(request), content_of(request, request.name))
        policy = _complete_policy(self._policy)
        score_request(LocalEngine(), serving, copy, self._store, policy, folder)
        comparison = ReplayComparison(serving, self._store, policy)
        with ParquetFiles([folder / OUTPUT_NAME]) as scored:
            for rows in scored.between(0, scored.rows):
                different = comparison.different(rows)
                if different.num_rows:
                    yield comparison.explained(different)


def _complete_policy(policy: Policy) -> Policy:
    """Return the policy of a replay. Under `reject`, the answered requests had no incomplete rows."""
    return msgspec.structs.replace(policy, kind="exclude") if policy.kind == "reject" else policy
