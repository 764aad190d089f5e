"""Chooses a reader that looks up all entities of a request, or of many requests, at once.

Feast reads an online store entity by entity and creates an object for each value. A bulk reader gets the same rows
together, as columns. Its assumptions about a store's layout are verified against Feast's own functions at construction.
If they differ, or a service needs features that it can't read, Feast reads the store instead.
"""

import logging
from typing import TYPE_CHECKING, Any

from scoring.feast_plugins.entity_keys import SERIALIZATION_VERSION, match_feast
from scoring.feast_plugins.value_decoder import VALUE_FIELDS
from scoring.features.model_features import ModelFeatures
from scoring.online.reading import StoreReader, ViewColumns

if TYPE_CHECKING:
    from feast import FeatureStore

log = logging.getLogger(__name__)


def bulk_reader(store: "FeatureStore", features: ModelFeatures) -> StoreReader | None:
    """Return a reader of the columns that `features` needs, or None if Feast must read the store.

    Feast must read online stores other than Feast's SQLite or Redis, on-demand features (`on_demand_online` requests
    only their inputs), versioned views, types other than numbers, booleans and strings, and unknown layouts.

    Raises:
        FeatureStoreError: the store's settings are wrong.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    from scoring.online.redis_reader import redis_reader
    from scoring.online.sqlite_reader import sqlite_reader

    config = store.config
    factories: dict[Any, Any] = {RedisOnlineStoreConfig: redis_reader, SqliteOnlineStoreConfig: sqlite_reader}
    create = factories.get(type(config.online_store))
    views = view_columns(features)
    if create is None or views is None or config.registry.enable_online_feature_view_versioning:
        return None
    if config.entity_key_serialization_version != SERIALIZATION_VERSION:
        return None
    reader: StoreReader | None = create(store, views) if all(match_feast(view.keys) for view in views) else None
    if reader is None:
        log.warning("Feast reads the online store, which is slower: its layout is unknown to the bulk reader.")
    return reader


def view_columns(features: ModelFeatures) -> list[ViewColumns] | None:
    """Return the columns to read from each feature view; None unless all of them are plain values."""
    if not all(not feature.on_demand and feature.dtype in VALUE_FIELDS for feature in features.features):
        return None
    return [
        ViewColumns(
            view.name,
            features.feast.views[view.name],
            view.keys,
            tuple(feature for feature in features.features if feature.views == (view.name,)),
        )
        for view in features.views
    ]
