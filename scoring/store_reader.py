"""Which way one model version's features are read from an online store."""

from typing import TYPE_CHECKING

from scoring.bulk_reader import bulk_reader
from scoring.feast_reader import FeastReader
from scoring.features import ModelFeatures
from scoring.online import StoreReader

if TYPE_CHECKING:
    from feast import FeatureStore


def fastest_reader(store: "FeatureStore", features: ModelFeatures) -> tuple[StoreReader, StoreReader]:
    """The fastest reader of these features that the store has, and one that runs no on-demand view's function.

    Raises:
        FeatureStoreError: the store's settings are wrong.
    """
    if not any(feature.on_demand for feature in features.features):
        reader = bulk_reader(store, features) or FeastReader(store, features)
        return reader, reader
    from scoring.on_demand_reader import on_demand_reader

    computing = on_demand_reader(store, features, bulk_reader)
    if computing is None:
        reader = FeastReader(store, features)
        return reader, reader
    return computing, computing.stored


def feast_reader(store: "FeatureStore", features: ModelFeatures) -> StoreReader:
    """A reader that asks Feast for what the store holds."""
    if not any(feature.on_demand for feature in features.features):
        return FeastReader(store, features)
    from scoring.on_demand_reader import on_demand_reader

    return on_demand_reader(store, features) or FeastReader(store, features)
