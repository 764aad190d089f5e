"""Entity keys in the online store: listing them, and choosing examples for requests."""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scoring.arrow.signature import NEUTRAL
from scoring.feast_plugins.join_keys import Keys
from scoring.features.model_features import ModelFeatures
from scoring.online.lookup import Lookup, read_online_vectors, read_rows
from scoring.online.reading import EntityRows

if TYPE_CHECKING:
    from feast import FeatureStore

EXAMPLES = 2
# The newest entities are chosen from this many per kind of entity, found in this many rows or pages of the store.
CANDIDATES = 100
SQLITE_ROWS = 2000
REDIS_PAGES, REDIS_PAGE_SIZE = 20, 1000

ListKeys = Callable[["FeatureStore", Any], Iterator[bytes | None]]
"""Yields the serialized keys of a feature view's rows; at the end, None if the store may have more.

Arguments: the store and the feature view.
"""


def stored_keys(store: "FeatureStore", lookup: Lookup, features: ModelFeatures) -> EntityRows | None:
    """Find entities in a SQLite or Redis online store, preferably with all features.

    Returns join key → values (n,) of the n newest entities, n at most EXAMPLES. None if there are none, the store does
    not respond, or it is another kind of store. Store errors are ignored.
    """
    list_keys = key_lister(store)
    try:
        rows = _candidates(store, features, list_keys) if list_keys else []
        if not rows:
            return None
        columns = {key.name: [row[key.name] for row in rows] for key in features.join_keys}
        inputs = {name: [NEUTRAL.get(dtype, 0)] * len(rows) for name, dtype in features.request_columns.items()}
        event_s = read_rows(lookup.stored, inputs | columns).event_s
        order = np.argsort(-np.min(list(event_s.values()), axis=0), kind="stable")
        reasons = read_online_vectors(lookup, features, inputs | columns, datetime.now(UTC)).reasons.to_pylist()
        complete = [place for place in order if reasons[place] is None]
        chosen = (complete or list(order))[:EXAMPLES]
    except Exception:  # exception types differ between clients; the store's probe reports the failure
        return None
    return {name: [values[place] for place in chosen] for name, values in columns.items()}


def _candidates(store: "FeatureStore", features: ModelFeatures, list_keys: ListKeys) -> list[dict[str, Any]]:
    """Return entity rows, join key → value. Keys that no single view has together are combined from several views."""
    found: dict[Keys, list[dict[str, Any]]] = {}
    for view in sorted(features.views, key=lambda view: -len(view.keys)):
        if view.keys and view.keys not in found:
            serialized = list_keys(store, features.feast.views[view.name])
            found[view.keys] = list(itertools.islice(_decode(serialized, view.keys), CANDIDATES))
    if not all(found.values()):
        return []
    rows = []
    for place in range(max(map(len, found.values()), default=0)):
        row: dict[str, Any] = {}
        for entities in found.values():
            row = entities[place % len(entities)] | row
        rows.append(row)
    return rows


def _decode(serialized: Iterator[bytes | None], keys: Keys) -> Iterator[dict[str, Any]]:
    from feast.infra.key_encoding_utils import deserialize_entity_key

    names, seen = [name for name, _ in keys], set()
    for each in filter(None, serialized):
        entity = deserialize_entity_key(each)
        if each not in seen and list(entity.join_keys) == names:
            seen.add(each)
            values = [getattr(value, value.WhichOneof("val")) for value in entity.entity_values]
            yield {key.name: value for (_, key), value in zip(keys, values, strict=True)}


def key_lister(store: "FeatureStore") -> ListKeys | None:
    """Return what lists the keys of this online store; None if it is neither SQLite nor a single Redis."""
    from feast.infra.online_stores.redis import RedisClient, RedisOnlineStoreConfig, RedisType
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

    online = store.config.online_store
    if isinstance(online, SqliteOnlineStoreConfig):
        return _list_in_sqlite
    if isinstance(online, RedisOnlineStoreConfig) and (online.redis_type, online.client) == (
        RedisType.redis,
        RedisClient.redis,
    ):
        return _list_in_redis
    return None


def _list_in_sqlite(store: "FeatureStore", view: Any) -> Iterator[bytes | None]:
    from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

    file = Path(SqliteOnlineStore._get_db_path(store.config)).absolute()
    table = _quote_id(_table_id(store.project, view))
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        query = f"SELECT entity_key FROM {table} ORDER BY rowid DESC LIMIT {SQLITE_ROWS}"
        yield from (key for (key,) in connection.execute(query))


def _list_in_redis(store: "FeatureStore", view: Any) -> Iterator[bytes | None]:
    from feast.infra.online_stores.redis import RedisOnlineStore

    project, cursor = store.project.encode(), 0
    client: Any = RedisOnlineStore()._get_client(store.config.online_store)
    with contextlib.closing(client):
        for _ in range(REDIS_PAGES):
            cursor, keys = client.scan(cursor, match=b"*" + project, count=REDIS_PAGE_SIZE)
            keys = [key for key in keys if key.endswith(project)]
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.hexists(key, f"_ts:{view.name}")
            # The result for a key that is not a hash is an error, which is ignored.
            found = pipeline.execute(raise_on_error=False)
            yield from (key.removesuffix(project) for key, has in zip(keys, found, strict=True) if has is True)
            if not cursor:
                return
    yield None
