"""The rows of the prediction log: which entity got which scores, from which feature values, by which version.

A row describes one entity of a scoring request. Its feature columns are Feast's own logging schema of the feature
service (feast.feature_logging, 0.67):

- each join key, and each request field of an on-demand view
- `<view>__<feature>`, its event time `…__timestamp` and its status `…__status`, for each feature of the service. The
  value is null where the row was past its time to live. Features that the model does not use are not read: they are
  null, with the status 0.
- `__log_timestamp`, the time as of which features were read; `__log_date`; `__request_id`

These columns follow, with the names that they have in a batch output, if they are in one:

- the request inputs of the model
- the outputs, `reason`, `model_name`, `model_version`, `feature_service`
- `__<view>__timestamp` and `__<view>__status` of a view that only on-demand views read
- `__role` (the alias that the version served under, or `challenger`), `__definitions` (a hash of the
  definitions of the features that the version reads), `__policy` (a JSON object: the policy for missing features),
  `__overrides` (a JSON object of the features that the request overrides, null without any), `__latency_ms` (from the
  decoded request to its scores), `__problem` (if scoring the request failed)

The metadata of a file's Arrow schema names the request's columns (`REQUEST_COLUMNS`).
"""

import itertools
import operator
import zlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.features.model_features import Feature, ModelFeatures, View, feast_name
from scoring.models.outputs import Outputs
from scoring.models.registry import ModelVersion
from scoring.online.reading import EntityRows, StoreRead
from scoring.predict import Policy

if TYPE_CHECKING:
    from feast import FeatureStore

# feast.protos.feast.serving.ServingService_pb2.FieldStatus
NOT_READ, PRESENT, NULL_VALUE, NOT_FOUND, OUTSIDE_MAX_AGE = 0, 1, 2, 3, 4
EVENT_TIME = pa.timestamp("s", "UTC")
LOG_TIMESTAMP, LOG_DATE, REQUEST_ID = "__log_timestamp", "__log_date", "__request_id"
ROLE, DEFINITIONS, LATENCY_MS, PROBLEM = "__role", "__definitions", "__latency_ms", "__problem"
CHALLENGER = "challenger"
"""The alias of the version that scores answered requests again, and its role."""
OVERRIDES, POLICY = "__overrides", "__policy"
REQUEST_COLUMNS = b"serving:request_columns"
"""Key of a file's schema metadata: a JSON list of the columns that came with the request."""


class LoggedRequest(msgspec.Struct, frozen=True, gc=False):
    """A request, or a part of one, in the log."""

    request_id: str
    entity_rows: EntityRows
    """Request column → values (rows,)."""
    rows: int
    outputs: Sequence[Sequence[Any]] | None
    """(n_outputs, rows). None if the request failed."""
    reasons: Sequence[str | None] | None
    """(rows,). None if the request failed."""
    latency_ms: float
    problem: str | None = None


class LoggedBatch(msgspec.Struct, frozen=True):
    """Requests whose features were read together, in the order of their rows."""

    requests: Sequence[LoggedRequest]
    as_of: datetime | np.ndarray
    """The time as of which features were read; or one per row (rows,), datetime64[us] in UTC."""
    read: StoreRead | None
    """What was read for the rows of these requests. None if it failed."""

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return sum(map(ROWS, self.requests))


ROWS = operator.attrgetter("rows")


class LogSchema:
    """The columns of the log for one version with one role."""

    def __init__(
        self,
        version: ModelVersion,
        features: ModelFeatures,
        outputs: Outputs,
        feast_schema: pa.Schema,
        *,
        role: str,
        definitions: str,
        policy: Policy,
    ) -> None:
        """Define the columns; `feast_schema` comes from `feast_log_schema`."""
        self._features = features
        self._constants = {
            "model_name": pa.array([version.name]),
            "model_version": pa.array([version.version], pa.int64()),
            "feature_service": pa.array([features.service]),
            ROLE: pa.array([role]),
            DEFINITIONS: pa.array([definitions]),
            POLICY: pa.array([encode_policy(policy)]),
        }
        self._outputs = outputs
        of_feast = dict(zip(feast_schema.names, feast_schema.types, strict=True))
        requested = {name: dtype or of_feast.get(name) for name, dtype in features.request_columns.items()}
        self._requested = {name: dtype for name, dtype in requested.items() if dtype is not None}
        own = list(self._requested.items())
        own += [(field.name, field.type) for field in outputs.schema]
        for view in self._unlisted(features):
            prefix = view_prefix(view.name)
            own += [(f"{prefix}__timestamp", EVENT_TIME), (f"{prefix}__status", pa.int32())]
        own += [
            ("reason", pa.string()),
            *((name, pa.dictionary(pa.int8(), value.type)) for name, value in self._constants.items()),
        ]
        own += [(OVERRIDES, pa.string()), (LATENCY_MS, pa.float64()), (PROBLEM, pa.string())]
        fields = [*feast_schema, *(pa.field(*each) for each in own if each[0] not in of_feast)]
        self.schema = pa.schema(fields, {REQUEST_COLUMNS: msgspec.json.encode(list(self._requested))})

    @staticmethod
    def _unlisted(features: ModelFeatures) -> list[View]:
        """Return the views of which no stored feature is in the log."""
        listed = {feature.views for feature in features.features if not feature.on_demand}
        return [view for view in features.views if (view.name,) not in listed]

    def table(self, batches: Sequence[LoggedBatch]) -> pa.Table:
        """Return the rows of some batches, with `schema`, in their order."""
        requests = [request for batch in batches for request in batch.requests]
        counts = list(map(ROWS, requests))
        rows = sum(counts)
        times = _times(batches)
        columns = self._of_views(batches, times.astype(np.int64) / 1e6)
        for name, dtype in self._requested.items():
            columns[name] = _joined([request.entity_rows[name] for request in requests], counts, dtype)
        columns[LOG_TIMESTAMP] = pa.array(times).cast(pa.timestamp("us", "UTC"))
        columns[LOG_DATE] = pa.array(times).cast(pa.date32())
        places = pa.array(np.repeat(np.arange(len(requests)), counts))
        columns[REQUEST_ID] = pa.array([request.request_id for request in requests], pa.string()).take(places)
        for place, field in enumerate(self._outputs.schema):
            outputs = [request.outputs and request.outputs[place] for request in requests]
            columns[field.name] = _joined(outputs, counts, field.type)
        columns["reason"] = _joined([request.reasons for request in requests], counts, pa.string())
        if self._features.overridable:
            columns[OVERRIDES] = pa.array(self._overrides(requests), pa.string())
        same = pa.repeat(pa.scalar(0, pa.int8()), rows)
        columns |= {name: pa.DictionaryArray.from_arrays(same, value) for name, value in self._constants.items()}
        columns[LATENCY_MS] = pa.array([request.latency_ms for request in requests], pa.float64()).take(places)
        columns[PROBLEM] = pa.array([request.problem for request in requests], pa.string()).take(places)
        return pa.Table.from_arrays(
            [_typed(field, columns.get(field.name), rows) for field in self.schema], schema=self.schema
        )

    def _overrides(self, requests: Sequence[LoggedRequest]) -> Iterator[str | None]:
        names = self._features.overridable
        for request in requests:
            for row in zip(*(request.entity_rows[name] for name in names), strict=True):
                given = {name: value for name, value in zip(names, row, strict=True) if value is not None}
                yield msgspec.json.encode(given).decode() if given else None

    def _of_views(self, batches: Sequence[LoggedBatch], now_s: np.ndarray) -> dict[str, Any]:
        """Return values, event times and statuses of the features that were read."""
        columns: dict[str, Any] = {}
        counts = [batch.rows for batch in batches]
        read = np.repeat([batch.read is not None for batch in batches], counts)
        present = np.full(len(now_s), PRESENT, np.int32)  # nearly always the status of all rows
        states = {view.name: _state(view, batches, read, now_s, present) for view in self._features.views}
        for unlisted in self._unlisted(self._features):
            prefix, (times, statuses) = view_prefix(unlisted.name), states[unlisted.name]
            columns |= {f"{prefix}__timestamp": times, f"{prefix}__status": pa.array(statuses)}
        for feature in self._features.features:
            name = feast_name(feature.column)
            values = pa.chunked_array([_values(batch, feature) for batch in batches], feature.dtype)
            status = present if values.null_count == 0 else np.where(values.is_null(), NULL_VALUE, PRESENT)
            for view in feature.views:
                if states[view][1] is not present:
                    status = np.where(states[view][1] != PRESENT, states[view][1], status)
            if status is not present:
                values = pc.if_else(pa.array(status == PRESENT), values, pa.scalar(None, feature.dtype))
            columns |= {name: values, f"{name}__status": pa.array(status)}
            if not feature.on_demand:
                columns[f"{name}__timestamp"] = states[feature.views[0]][0]
        return columns


def in_sample(request_id: str, fraction: float) -> bool:
    """Return whether a request is in a sample of this fraction: the same for each process and each smaller sample."""
    return zlib.crc32(request_id.encode("utf-8", "replace")) < fraction * 2**32


def encode_policy(policy: Policy) -> str:
    """Return what of a policy affects scores, as JSON."""
    return msgspec.json.encode({"kind": policy.kind, "impute_values": policy.impute_values}).decode()


def view_prefix(view: str) -> str:
    """Return the prefix of the columns of a view that only on-demand views read."""
    return f"__{view}"


def feast_log_schema(store: "FeatureStore", features: ModelFeatures) -> pa.Schema:
    """Return Feast's logging schema of a model's feature service, or the same columns of its inputs without one.

    A feature whose type Feast's schema can't have leaves only the model's own features in it.
    """
    from feast import FeatureService
    from feast.feature_logging import FeatureServiceLoggingSource

    if isinstance(features.feast.service, FeatureService):
        source = FeatureServiceLoggingSource(features.feast.service, store.project)
        try:
            return source.get_schema(_CachedRegistry(store.registry))  # type: ignore[arg-type]  # it reads views only
        except KeyError:  # the type
            pass
    columns: dict[str, pa.DataType] = {key.name: key.arrow_type for key in features.join_keys}
    for feature in features.features:
        name = feast_name(feature.column)
        columns |= {name: feature.dtype, f"{name}__timestamp": EVENT_TIME, f"{name}__status": pa.int32()}
    columns |= {LOG_TIMESTAMP: pa.timestamp("us", "UTC"), LOG_DATE: pa.date32(), REQUEST_ID: pa.string()}
    return pa.schema(list(columns.items()))


class _CachedRegistry:
    """A Feast registry that answers from its cache: the file of frozen definitions no longer exists."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._registry, name)
        return lambda *arguments, allow_cache=True: method(*arguments, allow_cache=True)  # noqa: ARG005


def _times(batches: Sequence[LoggedBatch]) -> np.ndarray:
    """Return the time as of which the features of each row were read, datetime64[us] (n_rows,), in UTC."""
    return np.concatenate([np.broadcast_to(_utc(batch.as_of), batch.rows) for batch in batches])


def _utc(as_of: datetime | np.ndarray) -> Any:
    if isinstance(as_of, np.ndarray):
        return as_of
    return np.datetime64(as_of.astimezone(UTC).replace(tzinfo=None), "us")


def _state(
    view: View, batches: Sequence[LoggedBatch], read: np.ndarray, now_s: np.ndarray, present: np.ndarray
) -> tuple[pa.Array, np.ndarray]:
    """Return the event times of a view's rows, and their statuses regardless of values, int32 (n_rows,).

    These are the array `present` itself if all rows are present.
    """
    event_s = np.concatenate(
        [np.zeros(batch.rows) if batch.read is None else batch.read.event_s[view.name] for batch in batches]
    )
    found = event_s != 0
    expired = found & (event_s + (np.inf if view.ttl_s is None else view.ttl_s) < now_s)
    times = pa.array(event_s.astype(np.int64), mask=~found).cast(EVENT_TIME)
    if found.all() and not expired.any():
        return times, present
    status = np.where(found, PRESENT, np.where(read, NOT_FOUND, NOT_READ)).astype(np.int32)
    status[expired] = OUTSIDE_MAX_AGE
    return times, status


def _values(batch: LoggedBatch, feature: Feature) -> pa.Array:
    if batch.read is None:
        return pa.nulls(batch.rows, feature.dtype)
    values = batch.read.columns[feature.column]
    return values if values.type == feature.dtype else values.cast(feature.dtype, safe=False)


def _joined(parts: Sequence[Sequence[Any] | None], counts: Sequence[int], dtype: pa.DataType) -> pa.Array:
    """Return the values of all parts in order. A part may be None for as many nulls as its count."""
    if all(part is None or part.count(None) == len(part) for part in parts):
        return pa.nulls(sum(counts), dtype)
    if None in parts:
        parts = [[None] * n if part is None else part for part, n in zip(parts, counts, strict=True)]
    return pa.array(list(itertools.chain.from_iterable(parts)), dtype)  # type: ignore[arg-type]  # no part is None


def _typed(field: pa.Field, column: Any, rows: int) -> Any:
    """Return a column in the type of its field. One that was not read is null, with the status NOT_READ."""
    if column is None:
        status = field.name.endswith("__status")
        return pa.repeat(pa.scalar(NOT_READ, field.type), rows) if status else pa.nulls(rows, field.type)
    return column if column.type == field.type else column.cast(field.type, safe=False)
