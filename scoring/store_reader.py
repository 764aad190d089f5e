"""How one model version's features are looked up in an online store."""

from typing import TYPE_CHECKING

from scoring.bulk_reader import bulk_reader
from scoring.feast_reader import FeastReader
from scoring.features import ModelFeatures
from scoring.online import Lookup

if TYPE_CHECKING:
    from feast import FeatureStore


def fastest_lookup(store: "FeatureStore", features: ModelFeatures) -> Lookup:
    """The fastest way that the store has.

    Raises:
        FeatureStoreError: the store's settings are wrong, or an on-demand view's function can't be run.
    """
    if not any(feature.on_demand for feature in features.features):
        return Lookup(bulk_reader(store, features) or FeastReader(store, features))
    from scoring.on_demand_online import lookup_with_on_demand_views

    return lookup_with_on_demand_views(store, features, bulk_reader) or Lookup(FeastReader(store, features))


def feast_lookup(store: "FeatureStore", features: ModelFeatures) -> Lookup:
    """The way by which Feast is asked for what the store holds.

    Raises:
        FeatureStoreError: an on-demand view's function can't be run.
    """
    if not any(feature.on_demand for feature in features.features):
        return Lookup(FeastReader(store, features))
    from scoring.on_demand_online import lookup_with_on_demand_views

    return lookup_with_on_demand_views(store, features) or Lookup(FeastReader(store, features))
