"""Feature vectors as of now: read from Feast's online store, with the views' times to live enforced."""

import traceback
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError

from scoring.errors import READING, EntityRowsError, FeatureStoreError, UnusableFeature
from scoring.features.model_features import ModelFeatures, missing_reasons
from scoring.online.reading import NO_VALUE, RUNNING_VIEW, StoreRead, StoreReader, request_column

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.online.on_demand_online import OnDemandOnline
    from scoring.online.reading import BulkReader


class OnlineVectors(msgspec.Struct, frozen=True):
    """What the online store knows of n entity rows, in the order asked for."""

    vectors: pa.Table
    """Feature vectors (n_rows, n_inputs) in signature order and types; null = unknown, or past its time to live."""
    reasons: pa.Array
    """string (n_rows,): `not_found`, `stale` or `null_feature`; null where the vector is complete."""
    oldest_s: float | None = None
    """Event time of the oldest row that was found, in seconds since 1970; None where none was found."""


class Lookup(msgspec.Struct, frozen=True):
    """How one model version's features are looked up."""

    stored: StoreReader
    """Reads what the store holds; and where `on_demand` is None, whatever is needed."""
    on_demand: "OnDemandOnline | None" = None
    """Adds what on-demand views make of that."""


def read_online_vectors(
    lookup: Lookup, features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]], now: datetime
) -> OnlineVectors:
    """Look up entities in the online store.

    Args:
        lookup: how the online store is read.
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
    read = read_rows(lookup.stored, entity_rows)
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
    columns = read.columns if lookup.on_demand is None else lookup.on_demand.add(read.columns, unusable, entity_rows)
    own = {
        each.name: request_column(each.name, entity_rows, each.dtype)
        for each in features.signature.inputs
        if each.name in features.request_inputs
    }
    vectors = features.vectors(columns | own, unusable)
    return OnlineVectors(
        vectors, missing_reasons(vectors, absent, unusable), float(oldest_s) if oldest_s < np.inf else None
    )


def read_rows(reader: StoreReader, entity_rows: Mapping[str, Sequence[Any]]) -> StoreRead:
    """What the store holds of n entities, n at least 1. The only place that translates errors of online stores.

    Raises:
        FeatureStoreError: the online store failed.
        UnusableFeature: it answered, with something that is not what Feast writes for an entity.
    """
    try:
        return reader.read(entity_rows)
    except FeatureStoreError:
        raise
    except Exception as error:
        if _is_of_on_demand_view(error):
            raise UnusableFeature(RUNNING_VIEW, type(error).__name__) from error
        if isinstance(error, reader.store_errors) and not isinstance(error, DecodeError):
            raise FeatureStoreError(READING, error) from error
        raise UnusableFeature(READING, NO_VALUE) from error


def _count_rows(features: ModelFeatures, entity_rows: Mapping[str, Sequence[Any]]) -> int:
    names = list(features.request_columns)
    for name in names:
        if name not in entity_rows:
            raise EntityRowsError(name, None, f"it is missing; each entity row needs {', '.join(names)}.")
    rows = len(entity_rows[names[0]])
    for name in names:
        if len(entity_rows[name]) != rows:
            raise EntityRowsError(name, None, f"it has {len(entity_rows[name])} values and {names[0]!r} has {rows}.")
    return rows


def _is_of_on_demand_view(error: BaseException) -> bool:
    """Whether an exception comes from what a user wrote for an on-demand view, and not from the store."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("feast.transformation") for frame, _ in frames)


def fastest_lookup(store: "FeatureStore", features: ModelFeatures) -> Lookup:
    """The fastest way that the store has.

    Raises:
        FeatureStoreError: the store's settings are wrong, or an on-demand view's function can't be run.
    """
    from scoring.online.bulk_reader import bulk_reader

    return _lookup(store, features, bulk_reader)


def feast_lookup(store: "FeatureStore", features: ModelFeatures) -> Lookup:
    """The way by which Feast is asked for what the store holds.

    Raises:
        FeatureStoreError: an on-demand view's function can't be run.
    """
    return _lookup(store, features, lambda _store, _features: None)


def _lookup(store: "FeatureStore", features: ModelFeatures, bulk: "BulkReader") -> Lookup:
    from scoring.features.on_demand_views import on_demand_views
    from scoring.online.feast_reader import FeastReader
    from scoring.online.on_demand_online import with_on_demand_views

    views = on_demand_views(features)
    if views is None:
        return Lookup(bulk(store, features) or FeastReader(store, features))
    found = with_on_demand_views(store, features, views, bulk)
    return Lookup(*found) if found else Lookup(FeastReader(store, features))
