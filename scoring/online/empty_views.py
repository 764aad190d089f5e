"""Feature views without a row in the online store: all entities are `not_found` there, which nothing else explains."""

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoring.features.model_features import ModelFeatures

if TYPE_CHECKING:
    from feast import FeatureStore

# Redis lists about this many keys at a time. If a view has no row among the first SCANS * KEYS_PER_SCAN keys, and there
# are more, it is not reported.
KEYS_PER_SCAN = 1000
SCANS = 20


class EmptyViews:
    """The feature views of one model version that had no row in the online store when it was last searched.

    SQLite and Redis are searched for a row of each view. Other stores can't list their rows: there, a view counts as
    empty if Feast's registry records no materialization, until a lookup finds a row.
    """

    def __init__(self, store: "FeatureStore", features: ModelFeatures) -> None:
        """Search once. A store that does not answer is not reported here."""
        from feast.infra.online_stores.redis import RedisClient, RedisOnlineStoreConfig, RedisType
        from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

        views = [features.feast.views[view.name] for view in features.views]
        self._views = {view.name: view for view in views}
        self._store = store
        online = store.config.online_store
        self._search = None
        if isinstance(online, SqliteOnlineStoreConfig):
            self._search = _empty_in_sqlite
        elif (
            isinstance(online, RedisOnlineStoreConfig)
            and online.redis_type is RedisType.redis
            and online.client is RedisClient.redis
        ):
            self._search = _empty_in_redis
        self.names: Sequence[str] = sorted(self._views)
        """As the Feast registry names them."""
        if self._search is None:
            self.names = [name for name in self.names if not self._views[name].materialization_intervals]
        self.search_again()

    def search_again(self) -> None:
        """Search again, unless every view had a row. Raises nothing."""
        if self.names and self._search is not None:
            try:
                self.names = self._search(self._store, {name: self._views[name] for name in self.names})
            except Exception:  # each client raises its own; the store's probe reports it
                self.names = ()

    def row_found(self) -> None:
        """A lookup found a row."""
        if self._search is None:
            self.names = ()


def _empty_in_sqlite(store: "FeatureStore", views: Mapping[str, Any]) -> list[str]:
    from feast.infra.online_stores.sqlite import SqliteOnlineStore, _quote_id, _table_id

    file = Path(SqliteOnlineStore._get_db_path(store.config)).absolute()
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        queries = {
            name: f"SELECT 1 FROM {_quote_id(_table_id(store.project, view))} LIMIT 1"  # noqa: S608 - Feast's quoting
            for name, view in views.items()
        }
        return [name for name, query in queries.items() if connection.execute(query).fetchone() is None]


def _empty_in_redis(store: "FeatureStore", views: Mapping[str, Any]) -> list[str]:
    from feast.infra.online_stores.redis import RedisOnlineStore

    left, cursor = dict.fromkeys(views), 0
    client: Any = RedisOnlineStore()._get_client(store.config.online_store)
    with contextlib.closing(client):
        for _ in range(SCANS):
            cursor, keys = client.scan(cursor, match=f"*{store.project}", count=KEYS_PER_SCAN)
            for name in tuple(left):
                pipeline = client.pipeline(transaction=False)
                for key in keys:
                    pipeline.hexists(key, f"_ts:{name}")
                # A key that is not a hash gives an error, which says nothing.
                if any(found is True for found in pipeline.execute(raise_on_error=False)):
                    del left[name]
            if not left or not cursor:
                return list(left)
    return []
