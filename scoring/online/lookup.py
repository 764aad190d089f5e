"""Reads current feature vectors from Feast's online store and enforces the views' times to live."""

import functools
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from scoring.arrow.signature import conform
from scoring.errors import READING, EntityRowsError, FeatureStoreError, UnusableFeature
from scoring.features.model_features import ModelFeatures, missing_reasons
from scoring.online.number_inputs import NumberInputs
from scoring.online.reading import RUNNING_VIEW, EntityRows, StoreRead, StoreReader, request_column

if TYPE_CHECKING:
    from feast import FeatureStore

    from scoring.online.on_demand_online import OnDemandOnline


class OnlineVectors(msgspec.Struct, frozen=True, dict=True):
    """Features of n entity rows in the online store, in the request's order."""

    table: pa.Table | Callable[[], pa.Table]
    """`vectors`, or a function that makes them, because most requests do not need them."""
    reasons: pa.Array
    """string (n_rows,): `not_found`, `stale` or `null_feature`; null if the vector is complete."""
    oldest_s: float | None = None
    """Event time of the oldest row that was found, in seconds since 1970; None if none was found."""
    read: StoreRead | None = None
    """What was read, and the on-demand features computed from it, before times to live were applied; None if the rows
    are only a part of those that were read."""
    array: np.ndarray | None = None
    """The vectors as the model's input, if `NumberInputs` could make it: all rows are then complete."""

    @functools.cached_property
    def vectors(self) -> pa.Table:
        """Return feature vectors (n_rows, n_inputs) in signature order and types.

        null means unknown or past its time to live.
        """
        return self.table() if callable(self.table) else self.table


class Lookup(msgspec.Struct, frozen=True):
    """Lookup strategy of one model version."""

    stored: StoreReader
    """Reads the stored features; if `on_demand` is None, these are all that is needed."""
    on_demand: "OnDemandOnline | None" = None
    """Adds the features that on-demand views compute from them."""
    numbers: NumberInputs | None = None
    """Makes the model's input of rows that are complete; None if it needs `OnlineVectors.vectors`."""


def fastest_lookup(store: "FeatureStore", features: ModelFeatures) -> Lookup:
    """Return the fastest lookup of `features` that the store supports: in bulk, or else through Feast.

    Raises:
        FeatureStoreError: the store's settings are wrong, or an on-demand view's function can't be run.
    """
    from scoring.features.on_demand_views import on_demand_views
    from scoring.online.bulk_reader import bulk_reader
    from scoring.online.feast_reader import FeastReader
    from scoring.online.on_demand_online import with_on_demand_views

    views = on_demand_views(features)
    if views is None:
        return Lookup(bulk_reader(store, features) or FeastReader(store, features))
    found = with_on_demand_views(store, features, views)
    return Lookup(*found) if found else Lookup(FeastReader(store, features))


def read_online_vectors(
    lookup: Lookup, features: ModelFeatures, entity_rows: EntityRows, now: datetime
) -> OnlineVectors:
    """Look up entities in the online store.

    Args:
        lookup: the lookup strategy.
        features: the features that fill the model's inputs.
        entity_rows: join keys and request-time inputs, column → n_rows values, of the declared types; and optionally
            values of overridable inputs, None where the stored one is used.
        now: the time at which rows must be within their time to live, with a time zone.

    Raises:
        EntityRowsError: a column is missing, or columns differ in length.
        FeatureStoreError: the online store failed.
    """
    rows = _count_rows(features, entity_rows)
    if rows == 0:
        return OnlineVectors(features.signature.schema.empty_table(), pa.nulls(0, pa.string()))
    return vectors_of(lookup, features, read_rows(lookup.stored, entity_rows), entity_rows, now.timestamp())


def vectors_of(
    lookup: Lookup,
    features: ModelFeatures,
    read: StoreRead,
    entity_rows: EntityRows,
    now_s: float | np.ndarray,
) -> OnlineVectors:
    """Return the vectors of entities, at least one, for which `lookup.stored` or another reader read these features.

    Args:
        lookup: the lookup strategy.
        features: the features that fill the model's inputs.
        read: what was read for the entities.
        entity_rows: as in `read_online_vectors`.
        now_s: the time at which rows must be within their time to live, in seconds since 1970; one, or one per row.

    Raises:
        EntityRowsError: a request's value does not fit.
        UnusableFeature: a value does not fit the declared type.
    """
    absent, unusable = {}, {}
    oldest_s, newest_s = np.inf, now_s if isinstance(now_s, float) else now_s.max()
    for view in features.views:
        event_s = read.event_s[view.name]
        first_s = event_s.min()
        # Nearly always, every row exists and is fresh, for which one comparison suffices.
        if first_s > 0 and (view.ttl_s is None or first_s + view.ttl_s >= newest_s):
            oldest_s = min(oldest_s, first_s)
            continue
        missing = event_s == 0
        expired = missing if view.ttl_s is None else missing | (event_s + view.ttl_s < now_s)
        if missing.any():
            absent[view.name] = pa.array(missing)
        if expired.any():
            unusable[view.name] = pa.array(expired)
        oldest_s = min(oldest_s, event_s.min(where=~missing, initial=np.inf))
    oldest = float(oldest_s) if oldest_s < np.inf else None
    overrides = ((name, entity_rows.get(name, ())) for name in features.overridable)
    given = [name for name, values in overrides if values.count(None) < len(values)]
    array = None if lookup.numbers is None or unusable or given else lookup.numbers.array(read)
    if array is not None:
        return OnlineVectors(lambda: features.vectors(read.columns, {}), _no_reasons(read.rows), oldest, read, array)
    columns = read.columns if lookup.on_demand is None else lookup.on_demand.add(read.columns, unusable, entity_rows)
    from_request = {
        each.name: request_column(each.name, entity_rows, each.dtype)
        for each in features.signature.inputs
        if each.name in features.request_inputs
    }
    vectors = features.vectors(columns | from_request, unusable)
    reasons = missing_reasons(vectors, absent, unusable)
    if given:
        vectors, reasons = _override(given, entity_rows, vectors, reasons)
    return OnlineVectors(vectors, reasons, oldest, StoreRead(read.event_s, columns))


@functools.lru_cache(maxsize=256)
def _no_reasons(rows: int) -> pa.Array:
    return pa.nulls(rows, pa.string())


def _override(
    given: Sequence[str], entity_rows: EntityRows, vectors: pa.Table, reasons: pa.Array
) -> tuple[pa.Table, pa.Array]:
    """Replace features by the request's values. A row whose vector is complete thereby has no reason any more."""
    for name in given:
        place = vectors.schema.get_field_index(name)
        field = vectors.schema.field(place)
        values = conform(request_column(name, entity_rows, field.type), field.type, name)
        vectors = vectors.set_column(place, field, pc.coalesce(values, vectors.column(place)))
    still_incomplete = pc.is_valid(missing_reasons(vectors, {}, {}))
    return vectors, pc.if_else(still_incomplete, reasons, pa.scalar(None, pa.string()))


def read_rows(reader: StoreReader, entity_rows: EntityRows) -> StoreRead:
    """Read the online store for n entities, n at least 1. All store errors are translated here.

    Raises:
        UnusableFeature: the store responded with a value that Feast does not write, or that an on-demand view's
            function can't process.
        FeatureStoreError: the store failed.
    """
    try:
        return reader.read(entity_rows)
    except FeatureStoreError:
        raise
    except Exception as error:
        if _is_from_on_demand_view(error):
            raise UnusableFeature(RUNNING_VIEW, type(error).__name__) from error
        if isinstance(error, reader.store_errors) and not isinstance(error, DecodeError):
            raise FeatureStoreError(READING, error) from error
        raise UnusableFeature(READING, "the stored bytes of an entity are not in Feast's format") from error


def _count_rows(features: ModelFeatures, entity_rows: EntityRows) -> int:
    names = list(features.request_columns)
    for name in names:
        if name not in entity_rows:
            raise EntityRowsError(name, f"it is missing; each entity row needs {', '.join(names)}.")
    rows = len(entity_rows[names[0]])
    for name in names:
        if len(entity_rows[name]) != rows:
            raise EntityRowsError(name, f"it has {len(entity_rows[name])} values and {names[0]!r} has {rows}.")
    return rows


def _is_from_on_demand_view(error: BaseException) -> bool:
    """Return whether Feast raised it while it ran the function of an on-demand view."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("feast.transformation") for frame, _ in frames)
