"""Why a replayed answer differs from the logged one: one cause for each row."""

import functools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scoring.arrow.signature import EVENT_TIMESTAMP, conform_or_null
from scoring.feast_plugins.event_times import EventTimes, read_event_times
from scoring.features.feature_store import definitions_read_by
from scoring.features.model_features import ModelFeatures, View, feast_name, reasons_from_nulls
from scoring.files.atomic import scratch_folder
from scoring.monitoring.prediction_log import (
    DEFINITIONS,
    OUTSIDE_MAX_AGE,
    OVERRIDES,
    REQUEST_ID,
    ROLE,
    view_prefix,
)
from scoring.monitoring.replay_report import as_text, report_rows
from scoring.predict import Policy, score
from scoring.serving import ServingModel

if TYPE_CHECKING:
    from feast import FeatureStore

LATE_ROW = "late_row"
NOT_MATERIALIZED = "not_materialized"
PAST_TTL = "past_ttl"
DEFINITION_CHANGED = "definition_changed"
OVERRIDDEN = "request_input"
VERSION_GONE = "version_gone"
UNEXPLAINED = "unexplained"
CAUSES = {
    LATE_ROW: "a feature row that was created after the answer, for an earlier time",
    NOT_MATERIALIZED: "a feature row that the online store did not have yet",
    PAST_TTL: "the online store's row was past its time to live",
    DEFINITION_CHANGED: "the definitions of features that the version reads have changed since",
    OVERRIDDEN: "the request overrides a feature; with its value, batch computes the same",
    VERSION_GONE: "the registry no longer has the version, or it can't be loaded",
    UNEXPLAINED: "none of these",
}
"""Cause → what it means, in the order in which they are reported."""

PREFIX = "log:"
"""Prefix of the logged columns in the batch request."""


class ReplayComparison:
    """Compares the rows of a batch output with the logged ones beside them."""

    def __init__(self, serving: ServingModel, store: "FeatureStore", policy: Policy) -> None:
        self._serving = serving
        self._policy = policy
        self._features = serving.features
        self._outputs = list(serving.model.outputs.names)
        self._model = str(serving.model.version)
        self._store = store
        self._definitions = definitions_read_by(serving.features)

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
            causes[same] = OVERRIDDEN
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
            "entity": as_text(rows, keys),
            "model": self._model,
            "role": rows[PREFIX + ROLE],
            "logged": as_text(rows, self._outputs, PREFIX),
            "replayed": as_text(rows, self._outputs),
        }
        return report_rows(columns, list(causes), list(details))

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
        return [each or (UNEXPLAINED, "the features are the same") for each in found]

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
