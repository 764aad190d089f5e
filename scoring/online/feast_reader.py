"""Reads any online store through Feast, entity by entity."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from scoring.feast_plugins.value_decoder import as_declared, plain_value
from scoring.features.model_features import ModelFeatures
from scoring.online.reading import EntityRows, StoreRead, StoreReader

if TYPE_CHECKING:
    from feast import FeatureService, FeatureStore


class FeastReader(StoreReader):
    """A `StoreReader` that calls Feast for a model's whole feature service or for some features."""

    store_errors = (Exception,)  # exception types differ between online stores

    def __init__(self, store: "FeatureStore", features: ModelFeatures, references: Sequence[str] | None = None) -> None:
        """Prepare the calls.

        Args:
            store: the Feast store.
            features: the features to read.
            references: `view:feature` of all these features and of a column of each view. If None, Feast reads the
                whole service, or all features without one, and computes on-demand features.

        Raises:
            FeatureStoreError: two features would have the same name in Feast's response.
        """
        self._store = store
        self._features = features
        self._references = None if references is None else list(references)
        self._short_names = _short_names(features) if references is None else None
        self._names = self._short_names or features.feast_names

    def read(self, entity_rows: EntityRows) -> StoreRead:
        """See `StoreReader.read`."""
        results = self._columns(entity_rows)
        rows = len(next(iter(entity_rows.values())))
        return StoreRead(
            {view.name: _event_times(results[view.columns[0]], rows) for view in self._features.views},
            {
                feature.column: as_declared(
                    [plain_value(value) for value in results[feature.column].values], feature.dtype
                )
                for feature in self._features.features
            },
        )

    def _columns(self, entity_rows: EntityRows) -> dict[str, Any]:
        """Return `view:feature` → Feast's own column."""
        if self._references is None:
            results = self._call(self._features.feast.service, dict(entity_rows), full_names=self._short_names is None)
        else:
            keys = {key.name: entity_rows[key.name] for key in self._features.join_keys}
            results = self._call(self._references, keys, full_names=True) if self._references else {}
        return {column: results[name] for column, name in self._names.items() if name in results}

    def _call(self, wanted: "list[str] | FeatureService", rows: dict[str, Any], full_names: bool) -> dict[str, Any]:
        response = self._store.get_online_features(wanted, rows, full_feature_names=full_names).proto
        return dict(zip(response.metadata.feature_names.val, response.results, strict=True))


def _short_names(features: ModelFeatures) -> dict[str, str] | None:
    """Return `view:feature` → `feature` if some features are on demand and no two have the same name; else None.

    With full names, Feast handles the output of an on-demand view incorrectly: in Python mode it omits the output, and
    in pandas mode it returns integers as doubles if one of them is null (feast 0.67).
    """
    if not any(feature.on_demand for feature in features.features):
        return None
    short = dict(features.served)
    for view in features.views:
        short |= {column: column.partition(":")[2] for column in view.columns}
    taken = [*short.values(), *features.request_columns]
    return short if len(set(taken)) == len(taken) else None


def _event_times(column: Any, rows: int) -> np.ndarray:
    """Return event times in seconds since 1970, float64 (rows,); 0 if the store has no row, as Feast reports it."""
    times = column.event_timestamps
    return np.fromiter((time.seconds + time.nanos * 1e-9 for time in times), np.float64, rows)
