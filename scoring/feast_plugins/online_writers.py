"""Writes rows to Feast's Redis and SQLite online stores in bulk, with the same result as Feast's own code.

A writer implements a store's layout. Its `matches_feast` compares the result with that of Feast's own class.
"""

from typing import Any, Protocol

from feast import FeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore, RedisType
from feast.infra.online_stores.sqlite import SqliteOnlineStore
from feast.repo_config import RepoConfig

from scoring.feast_plugins.encoded_rows import EncodedRows, FeastRows
from scoring.feast_plugins.entity_keys import SERIALIZATION_VERSION
from scoring.feast_plugins.redis_writer import MAX_FEATURES, RedisWriter
from scoring.feast_plugins.sqlite_writer import SqliteWriter


class Writer(Protocol):
    """Writes rows of one feature view to one online store."""

    def matches_feast(self, rows: EncodedRows, feasts: FeastRows) -> bool:
        """Return whether this writer would store these rows exactly as Feast's own class does. Write nothing."""

    def write(self, rows: EncodedRows) -> None:
        """Write the rows. Older rows do not replace rows that Feast's class would keep.

        Raises:
            UnsupportedEncoding: Feast's own class must write these rows.
            Exception: a client or file error. Earlier rows may have been written.
        """

    def finish(self) -> None:
        """Make the written rows visible to others. Call it once, also after an error."""


def writer_for(config: RepoConfig, view: FeatureView, store: OnlineStore) -> Writer | None:
    """Return the writer of this view's rows for this store; None if only Feast's own class can write them."""
    options: Any = config.online_store
    if config.entity_key_serialization_version != SERIALIZATION_VERSION or not 0 < len(view.features) <= MAX_FEATURES:
        return None
    # Check for exactly these classes, because a subclass may write differently.
    if type(store) is RedisOnlineStore:
        return RedisWriter(config, view, store) if options.redis_type is not RedisType.redis_cluster else None
    if type(store) is SqliteOnlineStore and not (options.vector_enabled or options.enable_openai_compatible_store):
        return SqliteWriter(config, view, store)
    return None
