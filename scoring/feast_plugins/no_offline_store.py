"""The offline store of who only serves online: none, so that its libraries (DuckDB, a warehouse's) are not needed."""

from feast.infra.offline_stores.offline_store import OfflineStore
from feast.repo_config import FeastConfigBaseModel


class NoOfflineStoreConfig(FeastConfigBaseModel):
    """Nothing to say."""

    type: str = "scoring.feast_plugins.no_offline_store.NoOfflineStore"


class NoOfflineStore(OfflineStore):
    """Named in a configuration and never made: Feast makes an offline store when it is first asked for something."""
