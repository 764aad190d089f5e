"""Feature vectors as of now: read from Feast's online store, with the views' times to live enforced."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from scoring.errors import EntityRowsError, FeatureStoreError
from scoring.features import Columns, ModelFeatures, missing_reasons
from scoring.signature import holds_every_value

if TYPE_CHECKING:
    from feast import FeatureStore


class OnlineVectors(msgspec.Struct, frozen=True):
    """What the online store knows of n entity rows, in the order asked for."""

    vectors: pa.Table
    """Feature vectors (n_rows, n_inputs) in signature order and types; null = unknown, or past its time to live."""
    reasons: pa.Array
    """string (n_rows,): `not_found`, `stale` or `null_feature`; null where the vector is complete."""
    oldest_s: float | None = None
    """Event time of the oldest row that was found, in seconds since 1970; None where none was found."""


def read_online_vectors(
    store: "FeatureStore", features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]], now: datetime
) -> OnlineVectors:
    """Look up entities in the online store.

    Args:
        store: the Feast store; its online store is read once a feature view.
        features: which features of which service make the model's vector.
        entity_rows: join keys and request-time inputs, column → n_rows values, of the declared types.
        now: the moment against which times to live are held, with a time zone.

    Raises:
        EntityRowsError: a column is missing, or columns differ in length.
        FeatureStoreError: the online store failed.
    """
    rows = _count_rows(features, entity_rows)
    if rows == 0:
        return OnlineVectors(features.signature.schema.empty_table(), pa.nulls(0, pa.string()))
    try:
        service = store.get_feature_service(features.service, allow_cache=True)
        answer = store.get_online_features(
            features=service, entity_rows=dict(entity_rows), full_feature_names=True
        ).proto
    except Exception as error:  # every online store raises its own kinds
        raise FeatureStoreError("reading the online store", error) from error
    place = {name: i for i, name in enumerate(answer.metadata.feature_names.val)}
    absent, stale = {}, {}
    oldest_s = np.inf
    for view in features.views:
        written_s = _event_times(answer.results[place[view.columns[0]]], rows)
        oldest_s = min(oldest_s, written_s.min(where=written_s > 0, initial=np.inf))
        absent[view.name] = pa.array(written_s == 0)
        if view.ttl_s is not None:
            stale[view.name] = pa.array(written_s + view.ttl_s < now.timestamp())
    unusable = {name: _either(mask, stale.get(name)) for name, mask in absent.items()}
    vectors = features.vectors(_columns(features, entity_rows, answer, place), unusable)
    return OnlineVectors(
        vectors, missing_reasons(vectors, absent, stale), float(oldest_s) if oldest_s < np.inf else None
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


def _columns(
    features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]], answer: Any, place: dict[str, int]
) -> Columns:
    columns: dict[str, pa.Array] = {}
    for feature in features.features:
        values = answer.results[place[feature.column]].values
        columns[feature.column] = _array([_value(value) for value in values], feature.dtype)
    for model_input in features.signature.inputs:
        if model_input.name in features.request_inputs:
            try:
                columns[model_input.name] = pa.array(entity_rows[model_input.name], model_input.dtype)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise EntityRowsError(model_input.name, None, f"{model_input.dtype} is needed ({error}).") from None
    return columns


def _value(value: Any) -> Any:
    kind = value.WhichOneof("val")
    return None if kind is None or kind == "null_val" else getattr(value, kind)


def _array(values: list[Any], dtype: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(dtype):  # Feast writes whole seconds since 1970
        return pa.array(values, pa.timestamp("s", "UTC")).cast(dtype)
    found = pa.array(values)
    if holds_every_value(found.type, dtype) or pa.types.is_floating(dtype) or pa.types.is_null(found.type):
        return found.cast(dtype)
    # Written under an earlier definition. pa.array would cut 0.24 down to the integer 0.
    raise FeatureStoreError("reading the online store", f"a feature declared {dtype} was written as {found.type}.")


def _event_times(column: Any, rows: int) -> np.ndarray:
    """Seconds since 1970, float64 (rows,); 0 where the store has no row, as Feast tells it."""
    times = column.event_timestamps
    return np.fromiter((time.seconds + time.nanos * 1e-9 for time in times), np.float64, rows)


def _either(mask: pa.Array, other: pa.Array | None) -> pa.Array:
    return mask if other is None else pa.compute.or_(mask, other)
