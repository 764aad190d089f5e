"""Readers of Feast's online stores that look up all entities of a request, or of many requests, at once.

Feast reads an online store entity by entity and makes an object of each value. A bulk reader gets the same rows with
one command, as columns. What it assumes about a store's layout is compared with Feast's own functions when it is made.
Where they differ, or a service needs what it can't read, there is no bulk reader and Feast reads the store.
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
    """A reader of what `features` needs, or None where Feast must read the store.

    That is the case for online stores other than Feast's SQLite or Redis, on-demand features (`on_demand_online` has
    it read what these need), versioned views, types other than numbers, booleans and strings, and unknown layouts.

    Raises:
        FeatureStoreError: the store's settings are wrong.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    from scoring.online.redis_reader import redis_reader
    from scoring.online.sqlite_reader import sqlite_reader

    config = store.config
    makers: dict[Any, Any] = {RedisOnlineStoreConfig: redis_reader, SqliteOnlineStoreConfig: sqlite_reader}
    make = makers.get(type(config.online_store))
    views = view_columns(features)
    if make is None or views is None or config.registry.enable_online_feature_view_versioning:
        return None
    if config.entity_key_serialization_version != SERIALIZATION_VERSION:
        return None
    reader: StoreReader | None = make(store, views) if all(match_feast(view.keys) for view in views) else None
    if reader is None:
        log.warning("Feast reads the online store, which is slower: its layout is unknown to the bulk reader.")
    return reader


def view_columns(features: ModelFeatures) -> list[ViewColumns] | None:
    """What to read from each feature view; None unless all of it is plain values."""
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
