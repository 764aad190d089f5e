"""An empty offline store, for online serving without the libraries of a real one (DuckDB, a warehouse's)."""

from feast.infra.offline_stores.offline_store import OfflineStore
from feast.repo_config import FeastConfigBaseModel


class NoOfflineStoreConfig(FeastConfigBaseModel):
    """Options under offline_store in feature_store.yaml: only the type."""

    type: str = "scoring.feast_plugins.no_offline_store.NoOfflineStore"


class NoOfflineStore(OfflineStore):
    """Is never instantiated, because Feast creates an offline store at its first use."""
