"""Replays the prediction log: are the logged answers what batch computes as of the same time, to the bit?

The logged rows of one version become a batch request, whose event timestamps are the times as of which the API read
features. The batch engine joins and scores it with that exact version. Each row with another answer gets one cause.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.arrow.signature import EVENT_TIMESTAMP, conform_or_null
from scoring.arrow.timestamps import TIMESTAMP
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import OUTPUT_NAME, Origin
from scoring.batch.request import RequestCopy, entity_columns
from scoring.errors import ModelNotRegistered, StorageError, VersionNotFound
from scoring.feast_plugins.event_times import EventTimes, read_event_times
from scoring.features.feature_store import read_definitions
from scoring.features.model_features import ModelFeatures, View, feast_name, reasons_from_nulls
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location, storage_errors
from scoring.files.parquet import ParquetFiles, write_tables
from scoring.files.transfer import content_of, publishing
from scoring.models.outputs import PREDICTION
from scoring.models.registry import Registry
from scoring.monitoring.prediction_log import (
    DEFINITIONS,
    LOG_TIMESTAMP,
    OUTSIDE_MAX_AGE,
    OVERRIDES,
    POLICY,
    PROBLEM,
    REQUEST_COLUMNS,
    REQUEST_ID,
    ROLE,
    fetch_log,
    view_prefix,
)
from scoring.predict import Policy, score
from scoring.serving import ServingModel, load_serving_model
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

LATE_ROW = "late_row"
NOT_MATERIALIZED = "not_materialized"
PAST_TTL = "past_ttl"
DEFINITION_CHANGED = "definition_changed"
REQUEST_INPUT = "request_input"
VERSION_GONE = "version_gone"
UNEXPLAINED = "unexplained"
CAUSES = {
    LATE_ROW: "a feature row that was created after the answer, for an earlier time",
    NOT_MATERIALIZED: "a feature row that the online store did not have yet",
    PAST_TTL: "the online store's row was past its time to live",
    DEFINITION_CHANGED: "the feature definitions have changed since",
    REQUEST_INPUT: "the request overrides a feature; with its value, batch computes the same",
    VERSION_GONE: "the registry no longer has the version",
    UNEXPLAINED: "none of these",
}
"""Cause → what it means, in the order in which they are reported."""

REPORTS = "_replay"
"""The folder of the reports, beside the days of the log."""
PREFIX = "log:"
"""Prefix of the logged columns in the batch request."""


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


REPORT_SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("log_timestamp", TIMESTAMP),
        ("entity", pa.string()),
        ("model", pa.string()),
        ("role", pa.string()),
        ("logged", pa.string()),
        ("replayed", pa.string()),
        ("cause", pa.string()),
        ("detail", pa.string()),
    ]
)
"""The columns of the report: one row per row with another answer."""


def replay(
    log: Location, settings: Settings, registry: Registry, store: "FeatureStore", report: Location
) -> ReplayReport:
    """Replay the files of a folder of the prediction log, and write the differences to `report`, a Parquet file.

    Raises:
        StorageError: a file can't be read, or the report can't be written.
        RegistryError, ModelRefused, FeatureStoreError: a version can't be loaded or joined, as in a batch run.
    """
    with scratch_folder() as scratch, publishing(report) as part, pq.ParquetWriter(part, REPORT_SCHEMA) as writer:
        logged = _by_version(fetch_log(log, scratch).values(), log)
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


def _by_version(files: Iterable[Path], log: Location) -> dict[tuple[Scored, str], list[Path]]:
    """Return what the rows of each file were scored with, and its schema → the files.

    One version has several schemas if features were added to its feature service meanwhile.
    """
    found: dict[tuple[Scored, str], list[Path]] = {}
    for place in files:
        try:
            with pq.ParquetFile(place) as file:
                first = file.read_row_group(0, ["model_name", "model_version", POLICY]).slice(0, 1)
                schema = str(file.schema_arrow.remove_metadata())
            (row,) = first.to_pylist()
            scored = row["model_name"], row["model_version"], row[POLICY]
        except (OSError, LookupError) as error:
            raise StorageError("reading", str(log / place.name), error) from None
        found.setdefault((scored, schema), []).append(place)
    return found


class _ReplayOfVersion:
    """The replay of the rows of one version with one policy."""

    def __init__(
        self, settings: Settings, registry: Registry, store: "FeatureStore", scored: Scored, files: list[Path]
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
        except (VersionNotFound, ModelNotRegistered):
            yield from self._of_gone_version()
            return
        with scratch_folder() as scratch:
            serving = load_serving_model(self._registry, self._store, version, self._settings)
            request = scratch / "request.parquet"
            self.rows = write_tables(self._requests(serving.features), request, {})
            if self.rows:
                yield from self._compared(serving, request, Location(scratch / "result"))

    def _answered(self) -> Iterator[pa.Table]:
        for file in self._files:
            with pq.ParquetFile(file) as opened:
                for group in range(opened.num_row_groups):
                    with storage_errors("reading", Location(file)):
                        rows = opened.read_row_group(group)
                    answered = rows.filter(pc.is_null(rows[PROBLEM]))
                    self.unanswered += rows.num_rows - answered.num_rows
                    yield answered

    def _requests(self, features: ModelFeatures) -> Iterator[pa.Table]:
        """Yield the log's rows as those of a batch request, with the logged columns under names of their own."""
        own = [name for name in entity_columns(features) if name != EVENT_TIMESTAMP]
        for rows in self._answered():
            columns = {name: rows[name] for name in own} | {EVENT_TIMESTAMP: rows[LOG_TIMESTAMP].cast(TIMESTAMP)}
            kept = {PREFIX + name: rows[name] for name in rows.column_names if name not in own}
            yield pa.table(columns | kept)

    def _of_gone_version(self) -> Iterator[pa.Table]:
        for rows in self._answered():
            self.rows += rows.num_rows
            outputs = [name for name in rows.column_names if name == PREDICTION or name.startswith(f"{PREDICTION}_")]
            request = msgspec.json.decode(rows.schema.metadata[REQUEST_COLUMNS], type=list[str])
            outputs = [name for name in outputs if name not in request]
            columns = {
                "request_id": rows[REQUEST_ID],
                "log_timestamp": rows[LOG_TIMESTAMP],
                "entity": _as_text(rows, request),
                "model": self.model,
                "role": rows[ROLE],
                "logged": _as_text(rows, outputs),
                "replayed": pa.nulls(rows.num_rows, pa.string()),
            }
            yield _report(columns, [VERSION_GONE] * rows.num_rows, [""] * rows.num_rows)

    def _compared(self, serving: ServingModel, request: Path, folder: Location) -> Iterator[pa.Table]:
        definitions = read_definitions(self._store).hash
        copy = RequestCopy(request, str(request), content_of(request, request.name))
        origin = Origin(copy.content, str(serving.model.version), serving.features.service, definitions)
        engine = LocalEngine()
        engine.write_input(copy, origin, self._store, serving.features, folder)
        policy = _complete_policy(self._policy)
        engine.write_output(folder, serving, policy)
        comparison = _Comparison(serving, self._store, definitions, policy)
        with ParquetFiles([folder / OUTPUT_NAME]) as scored:
            for rows in scored.between(0, scored.rows):
                different = comparison.different(rows)
                if different.num_rows:
                    yield comparison.explained(different)


class _Comparison:
    """Compares the rows of a batch output with the logged ones beside them."""

    def __init__(self, serving: ServingModel, store: "FeatureStore", definitions: str, policy: Policy) -> None:
        self._serving = serving
        self._policy = policy
        self._features = serving.features
        self._outputs = list(serving.model.outputs.names)
        self._model = str(serving.model.version)
        self._store = store
        self._definitions = definitions

    def different(self, rows: pa.Table) -> pa.Table:
        """Return the rows with another answer."""
        same = np.ones(rows.num_rows, dtype=bool)
        for name in self._outputs:
            same &= _same(rows[name], rows[PREFIX + name])
        return rows.filter(pa.array(~same))

    def explained(self, rows: pa.Table) -> pa.Table:
        """Return the report's rows for rows with another answer."""
        causes = np.full(rows.num_rows, UNEXPLAINED, dtype=object)
        details = np.full(rows.num_rows, "", dtype=object)
        changed = pc.not_equal(rows[PREFIX + DEFINITIONS], self._definitions).to_numpy()
        causes[changed] = DEFINITION_CHANGED
        if PREFIX + OVERRIDES in rows.column_names:
            overridden = np.flatnonzero(pc.is_valid(rows[PREFIX + OVERRIDES]).to_numpy() & ~changed)
            same = overridden[self._same_with_overrides(rows.take(overridden))] if len(overridden) else overridden
            causes[same] = REQUEST_INPUT
            details[same] = rows[PREFIX + OVERRIDES].take(same).to_pylist()
        open_places = np.flatnonzero(causes == UNEXPLAINED)
        if len(open_places):
            of_features = self._of_features(rows.take(open_places))
            for place, (cause, detail) in zip(open_places, of_features, strict=True):
                causes[place], details[place] = cause, detail
        keys = [key.name for key in self._features.join_keys]
        columns = {
            "request_id": rows[PREFIX + REQUEST_ID],
            "log_timestamp": rows[EVENT_TIMESTAMP],
            "entity": _as_text(rows, keys),
            "model": self._model,
            "role": rows[PREFIX + ROLE],
            "logged": _as_text(rows, self._outputs, PREFIX),
            "replayed": _as_text(rows, self._outputs),
        }
        return _report(columns, list(causes), list(details))

    def _same_with_overrides(self, rows: pa.Table) -> np.ndarray:
        """Return whether the joined features give the logged answer once the request's values replace them."""
        given = [msgspec.json.decode(each) for each in rows[PREFIX + OVERRIDES].to_pylist()]
        vectors = self._features.written_vectors(rows)
        for place, field in enumerate(vectors.schema):
            values = [each.get(field.name) for each in given]
            if any(value is not None for value in values):
                column = pa.array(values, pa.string() if pa.types.is_timestamp(field.type) else field.type)
                vectors = vectors.set_column(place, field, pc.coalesce(column.cast(field.type), vectors.column(place)))
        reasons = reasons_from_nulls(self._features, vectors)
        outputs = score(self._serving.model, vectors, reasons, self._policy, lambda row: f"row {row + 1}").outputs
        return functools.reduce(np.logical_and, (_same(outputs[name], rows[PREFIX + name]) for name in self._outputs))

    def _of_features(self, rows: pa.Table) -> list[tuple[str, str]]:
        """Return cause and detail of rows whose features were read by the current definitions.

        A row has a known cause only if each of its other features has one, in any of the views that it depends on.
        """
        at, times = rows[EVENT_TIMESTAMP].to_pylist(), self._event_times(rows)
        views = {view.name: self._of_view(rows, view, times, at) for view in self._features.views}
        found: list[tuple[str, str] | None] = [None] * rows.num_rows
        for feature in self._features.features:
            joined, logged = rows[feature.input], rows[PREFIX + feast_name(feature.column)]
            for place in np.flatnonzero(~_same(conform_or_null(logged, joined.type), joined)).tolist():
                causes = [views[view](place) for view in feature.views]
                cause = next((each for each in causes if each[0] != UNEXPLAINED), causes[0])
                if found[place] is None or cause[0] == UNEXPLAINED:
                    found[place] = cause
        return [each or (UNEXPLAINED, "") for each in found]

    def _of_view(
        self, rows: pa.Table, view: View, times: dict[str, EventTimes] | None, at: Sequence[datetime]
    ) -> Callable[[int], tuple[str, str]]:
        """Return a function of a row's place: the cause and detail of another row of the view."""
        read, status = _logged_times(rows, self._features, view)
        unknown: list[datetime | None] = [None] * rows.num_rows
        joined = unknown if times is None else times[view.name].event.to_pylist()
        created = unknown if times is None else times[view.name].created.to_pylist()

        def cause(place: int) -> tuple[str, str]:
            mine = "no row" if read[place] is None else f"the row of {read[place]}"
            row = "no row" if joined[place] is None else f"the row of {joined[place]}"
            late = "" if created[place] is None else f", created {created[place]}"
            detail = f"{view.name}: read {mine}, joined {row}{late}"
            return _cause(at[place], read[place], status[place], joined[place], created[place]), detail

        return cause

    def _event_times(self, rows: pa.Table) -> dict[str, EventTimes] | None:
        with scratch_folder() as scratch:
            request = scratch / "rows.parquet"
            keys = [key.name for key in self._features.join_keys]
            pq.write_table(rows.select([*keys, EVENT_TIMESTAMP]), request)
            return read_event_times(self._store, self._features.feast.views, request)


def _cause(
    at: datetime, read: datetime | None, status: int | None, joined: datetime | None, created: datetime | None
) -> str:
    """Return the cause of one row's other feature.

    Args:
        at: the time as of which features were read.
        read: the event time of the online store's row, in seconds.
        status: its Feast status.
        joined: the event time of the offline store's row.
        created: when that row was created.
    """
    if joined is None:
        return UNEXPLAINED
    if created is not None and created > at:
        return LATE_ROW
    if status == OUTSIDE_MAX_AGE:
        return PAST_TTL
    if read is None or joined.replace(microsecond=0) > read:
        return NOT_MATERIALIZED
    return UNEXPLAINED


def _logged_times(
    rows: pa.Table, features: ModelFeatures, view: View
) -> tuple[list[datetime | None], list[int | None]]:
    """Return event time and status of the online store's row of a view, for each row."""
    stored = next((each for each in features.features if each.views == (view.name,) and not each.on_demand), None)
    name = PREFIX + (view_prefix(view.name) if stored is None else feast_name(stored.column))
    return rows[f"{name}__timestamp"].to_pylist(), rows[f"{name}__status"].to_pylist()


def _same(left: pa.ChunkedArray, right: pa.ChunkedArray) -> np.ndarray:
    """Return whether values are equal, numbers to the bit, and nulls are equal; bool (n,)."""
    if left.type != right.type:
        right = right.cast(left.type, safe=False)
    unknown = left.is_null().to_numpy(), right.is_null().to_numpy()
    if pa.types.is_floating(left.type):
        bits = np.dtype(f"i{left.type.bit_width // 8}")
        numbers = [np.ascontiguousarray(each.fill_null(0).to_numpy()).view(bits) for each in (left, right)]
        equal = numbers[0] == numbers[1]
    else:
        equal = pc.fill_null(pc.equal(left, right), False).to_numpy()
    return np.asarray(np.where(unknown[0] | unknown[1], unknown[0] & unknown[1], equal))


def _report(columns: dict[str, Any], causes: Sequence[str], details: Sequence[str]) -> pa.Table:
    """Return the report's rows; `columns` has all other columns, and strings that are the same in all rows."""
    rows = len(causes)
    columns = columns | {"cause": pa.array(causes, pa.string()), "detail": pa.array(details, pa.string())}
    arrays = []
    for field in REPORT_SCHEMA:
        column = columns[field.name]
        arrays.append(pa.repeat(pa.scalar(column), rows) if isinstance(column, str) else column.cast(field.type))
    return pa.table(arrays, schema=REPORT_SCHEMA)


def _as_text(rows: pa.Table, names: Sequence[str], prefix: str = "") -> pa.Array:
    """Return the values of some columns as one string per row: the value of one, or `name=value` of several."""
    columns = [rows[prefix + name].to_pylist() for name in names]
    if len(names) == 1:
        return pa.array([None if value is None else str(value) for value in columns[0]], pa.string())
    values = (zip(names, row, strict=True) for row in zip(*columns, strict=True))
    return pa.array([", ".join(f"{name}={value}" for name, value in row) for row in values], pa.string())


def _complete_policy(policy: Policy) -> Policy:
    """Return the policy of a replay. Under `reject`, the answered requests had no incomplete rows."""
    return msgspec.structs.replace(policy, kind="exclude") if policy.kind == "reject" else policy
