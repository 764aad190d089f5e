"""Readers of Feast's online stores that look up all entities of a request, or of many requests, at once.

Feast reads an online store entity by entity and makes an object of each value. A bulk reader gets the same rows in one
command, as columns. What it knows of a store's layout is held against Feast's own functions when it is made; where they
differ, or a service needs what it can't do, there is no reader, and Feast's own way serves.
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
    """A reader of what `features` needs, or None where Feast's own way must serve.

    That is: another online store than Feast's SQLite or Redis, on-demand views
    (`scoring.on_demand_reader` has it read what these need), versioned views, a type other than numbers, bool and text,
    or a layout that is not the known one.
    """
    from feast.infra.online_stores.redis import RedisOnlineStoreConfig
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    from scoring.online.redis_reader import redis_reader
    from scoring.online.sqlite_reader import sqlite_reader

    config = store.config
    makers: dict[Any, Any] = {RedisOnlineStoreConfig: redis_reader, SqliteOnlineStoreConfig: sqlite_reader}
    make = makers.get(type(config.online_store))
    if make is None:
        return None
    versioned = config.registry.enable_online_feature_view_versioning
    views = view_columns(features)
    if versioned or config.entity_key_serialization_version != SERIALIZATION_VERSION or views is None:
        return None
    reader = make(store, views) if all(match_feast(view.keys) for view in views) else None
    if reader is None:
        log.warning("The online store is read by Feast itself, which is slower: its layout is not the known one.")
    return reader


def view_columns(features: ModelFeatures) -> list[ViewColumns] | None:
    """What to read from each feature view; None unless all of it is plain values of views with entities."""
    if any(feature.on_demand or feature.dtype not in VALUE_FIELDS for feature in features.features):
        return None
    if not all(view.keys for view in features.views):
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
