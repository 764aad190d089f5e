"""No offline store: for serving online only, without the libraries of one (DuckDB, a warehouse's)."""

from feast.infra.offline_stores.offline_store import OfflineStore
from feast.repo_config import FeastConfigBaseModel


class NoOfflineStoreConfig(FeastConfigBaseModel):
    """It has no options."""

    type: str = "scoring.feast_plugins.no_offline_store.NoOfflineStore"


class NoOfflineStore(OfflineStore):
    """Named in a configuration and never instantiated: Feast creates an offline store at its first use."""
