"""Feature vectors as of now: read from Feast's online store, with the views' times to live enforced."""

import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError

from scoring.errors import EntityRowsError, FeatureStoreError, UnusableFeature
from scoring.features import ModelFeatures, missing_reasons
from scoring.signature import holds_every_value

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore

    from scoring.bulk_reader import BulkReader


READING = "reading the online store"
RUNNING_VIEW = "running the function of an on-demand feature view"
NO_VALUE = "the bytes of an entity are not what Feast writes"


class OnlineVectors(msgspec.Struct, frozen=True):
    """What the online store knows of n entity rows, in the order asked for."""

    vectors: pa.Table
    """Feature vectors (n_rows, n_inputs) in signature order and types; null = unknown, or past its time to live."""
    reasons: pa.Array
    """string (n_rows,): `not_found`, `stale` or `null_feature`; null where the vector is complete."""
    oldest_s: float | None = None
    """Event time of the oldest row that was found, in seconds since 1970; None where none was found."""


class StoreRead(msgspec.Struct, frozen=True):
    """What an online store holds of n entity rows, before anything is judged."""

    written_s: dict[str, np.ndarray]
    """View → event time in seconds since 1970, float64 (n,); 0 where there is no row."""
    columns: dict[str, pa.Array]
    """`view__feature` → its values (n,), of the declared type; null = unknown."""


def read_online_vectors(
    store: "FeatureStore",
    features: ModelFeatures,
    entity_rows: Mapping[str, Sequence[Any]],
    now: datetime,
    bulk: "BulkReader | None" = None,
) -> OnlineVectors:
    """Look up entities in the online store.

    Args:
        store: the Feast store; its online store is read once a feature view.
        features: which features of which service make the model's vector.
        entity_rows: join keys and request-time inputs, column → n_rows values, of the declared types.
        now: the moment against which times to live are held, with a time zone.
        bulk: a faster way to the same rows than Feast's own, where the store has one.

    Raises:
        EntityRowsError: a column is missing, or columns differ in length.
        FeatureStoreError: the online store failed.
    """
    rows = _count_rows(features, entity_rows)
    if rows == 0:
        return OnlineVectors(features.signature.schema.empty_table(), pa.nulls(0, pa.string()))
    try:
        read = bulk.read(entity_rows) if bulk else _read_by_feast(store, features, entity_rows, rows)
    except FeatureStoreError:
        raise
    except DecodeError as error:  # the bytes of one entity; the store itself answered
        raise UnusableFeature(READING, NO_VALUE) from error
    except Exception as error:  # every online store raises its own kinds
        if _is_of_on_demand_view(error):
            raise UnusableFeature(RUNNING_VIEW, type(error).__name__) from error
        raise FeatureStoreError(READING, error) from error
    absent, unusable = {}, {}
    oldest_s = np.inf
    for view in features.views:
        written_s = read.written_s[view.name]
        missing = written_s == 0
        expired = missing if view.ttl_s is None else missing | (written_s + view.ttl_s < now.timestamp())
        # Nearly always every row is there and fresh: what is asked of these masks later costs more than this.
        if missing.any():
            absent[view.name] = pa.array(missing)
        if expired.any():
            unusable[view.name] = pa.array(expired)
        oldest_s = min(oldest_s, written_s.min(where=~missing, initial=np.inf))
    vectors = features.vectors(read.columns | _request_columns(features, entity_rows), unusable)
    return OnlineVectors(
        vectors, missing_reasons(vectors, absent, unusable), float(oldest_s) if oldest_s < np.inf else None
    )


def _count_rows(features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]]) -> int:
    names = (*(key.name for key in features.join_keys), *features.request_inputs)
    for name in names:
        if name not in entity_rows:
            raise EntityRowsError(name, None, f"it is missing; each entity row needs {', '.join(names)}.")
    rows = len(entity_rows[names[0]])
    for name in names:
        if len(entity_rows[name]) != rows:
            raise EntityRowsError(name, None, f"it has {len(entity_rows[name])} values and {names[0]!r} has {rows}.")
    return rows


def _read_by_feast(
    store: "FeatureStore", features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]], rows: int
) -> StoreRead:
    service = store.get_feature_service(features.service, allow_cache=True)
    short = _short_names(features, service)
    answer = store.get_online_features(service, dict(entity_rows), full_feature_names=short is None).proto
    results = dict(zip(answer.metadata.feature_names.val, answer.results, strict=True))
    if short is not None:
        results = {full: results[name] for full, name in short.items() if name in results}
    return StoreRead(
        {view.name: _event_times(results[view.columns[0]], rows) for view in features.views},
        {
            feature.column: as_declared([plain_value(value) for value in results[feature.column].values], feature.dtype)
            for feature in features.features
        },
    )


def _short_names(features: ModelFeatures, service: "FeatureService") -> dict[str, str] | None:
    """`view__feature` → `feature`, where a view is on demand and no two features have one name; else None.

    Asked for full names, Feast takes what an on-demand view computes for something else: in Python mode it leaves it
    out, and in pandas mode whole numbers beside a null come back as doubles (feast 0.67).
    """
    if not any(feature.on_demand for feature in features.features):
        return None
    short = {
        f"{projection.name_to_use()}__{field.name}": field.name
        for projection in service.feature_view_projections
        for field in projection.features
    }
    for view in features.views:
        short |= {column: column.removeprefix(f"{view.name}__") for column in view.columns}
    taken = [*short.values(), *(key.name for key in features.join_keys), *features.request_inputs]
    return short if len(set(taken)) == len(taken) else None


def _request_columns(features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]]) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for model_input in features.signature.inputs:
        if model_input.name in features.request_inputs:
            try:
                columns[model_input.name] = pa.array(entity_rows[model_input.name], model_input.dtype)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise EntityRowsError(model_input.name, None, f"{model_input.dtype} is needed ({error}).") from None
    return columns


def plain_value(value: Any) -> Any:
    """What Feast's Value holds; None for nothing."""
    kind = value.WhichOneof("val")
    return None if kind is None or kind == "null_val" else getattr(value, kind)


def as_declared(values: list[Any], dtype: pa.DataType) -> pa.Array:
    """Values as a store gives them, as an array (n,) of the type that their feature is declared to have.

    Args:
        values: Python's bool, int, float, str and so on; None = unknown.
        dtype: the declared type; another one than that of the values where the declaration was changed after they
            were written.

    Raises:
        UnusableFeature: a value has no counterpart in the declared type.
    """
    try:
        if pa.types.is_timestamp(dtype):  # Feast writes whole seconds since 1970
            return pa.array(values, pa.timestamp("s", "UTC")).cast(dtype)
        found = pa.array(values)
        if holds_every_value(found.type, dtype) or pa.types.is_floating(dtype) or pa.types.is_null(found.type):
            return found.cast(dtype)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        raise UnusableFeature(READING, f"a feature declared {dtype} was written as something else.") from None
    # pa.array would cut 0.24 down to the integer 0.
    raise UnusableFeature(READING, f"a feature declared {dtype} was written as {found.type}.")


def _is_of_on_demand_view(error: BaseException) -> bool:
    """Whether an exception comes from what a user wrote for an on-demand view, and not from the store."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("feast.transformation") for frame, _ in frames)


def _event_times(column: Any, rows: int) -> np.ndarray:
    """Seconds since 1970, float64 (rows,); 0 where the store has no row, as Feast tells it."""
    times = column.event_timestamps
    return np.fromiter((time.seconds + time.nanos * 1e-9 for time in times), np.float64, rows)
