"""Looks up features of which some were already read for another model version."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa

from scoring.features.model_features import Feature, ModelFeatures, View
from scoring.online.lookup import Lookup, OnlineVectors, fastest_lookup, read_rows, vectors_of
from scoring.online.reading import EntityRows, StoreRead, StoreReader

if TYPE_CHECKING:
    from feast import FeatureStore


class SharedLookup:
    """Makes feature vectors of one version from what was read for another, and reads only what is missing.

    Both versions are linked to the same feature definitions, and need the same columns of a request.
    """

    def __init__(
        self, store: "FeatureStore", features: ModelFeatures, other: ModelFeatures, columns: Sequence[str]
    ) -> None:
        """Find out what is missing.

        Args:
            store: Feast's store.
            features: those of the version that needs vectors.
            other: those of the version for which features are read.
            columns: `view:feature` of the columns that are read for it.

        Raises:
            FeatureStoreError: see `fastest_lookup`.
        """
        self._features = features
        self._lookup = fastest_lookup(store, features)
        self._views = {view.name for view in features.views if _is_in(view, features, other)}
        needed = {each.column: each for each in _stored(self._lookup, features)}
        known = [name for name, each in needed.items() if name in columns and self._views.issuperset(each.views)]
        missing = [each for name, each in needed.items() if name not in known]
        self._extra: StoreReader | None = None
        """Reads what is missing; None if nothing is."""
        if missing:
            self._extra = _reader(store, features, missing)
            if self._extra is None:
                self._extra, self._views, known = self._lookup.stored, set(), []
        self._known = known

    def vectors(
        self, reads: Sequence[StoreRead], entity_rows: EntityRows, now_s: float | np.ndarray
    ) -> tuple[OnlineVectors, np.ndarray]:
        """Return the vectors of n entity rows, and which of these have changed since the other version read them.

        A row has changed, bool (n,), if what is missing comes from a row of a view that is newer than `now_s`, or that
        is not the one that was read for the other version.

        Args:
            reads: what was read for them, for the other version; one or more parts, in their order.
            entity_rows: as in `read_online_vectors`.
            now_s: as in `vectors_of`.

        Raises:
            EntityRowsError, FeatureStoreError: see `read_online_vectors`.
        """
        event_s = {name: np.concatenate([read.event_s[name] for read in reads]) for name in self._views}
        columns = {name: pa.concat_arrays([read.columns[name] for read in reads]) for name in self._known}
        changed = np.zeros(len(next(iter(entity_rows.values()))), bool)
        if self._extra is not None:
            extra = read_rows(self._extra, entity_rows)
            for name, times in extra.event_s.items():
                changed |= times != event_s[name] if name in event_s else times > now_s
            event_s, columns = extra.event_s | event_s, extra.columns | columns
        return vectors_of(self._lookup, self._features, StoreRead(event_s, columns), entity_rows, now_s), changed


def _stored(lookup: Lookup, features: ModelFeatures) -> list[Feature]:
    """Return the features that the lookup's reader returns."""
    if lookup.on_demand is None:
        return list(features.features)
    return [*lookup.on_demand.inputs, *(each for each in features.features if not each.on_demand)]


def _is_in(view: View, features: ModelFeatures, other: ModelFeatures) -> bool:
    """Return whether another version reads the same view, by the same keys, under the same name."""
    return any(
        (each.name, each.keys, each.renamed) == (view.name, view.keys, view.renamed)
        and other.feast.views[each.name].name == features.feast.views[view.name].name
        for each in other.views
    )


def _reader(store: "FeatureStore", features: ModelFeatures, missing: Sequence[Feature]) -> StoreReader | None:
    """Return a reader of some features; None if Feast can only read all that the version needs."""
    from scoring.online.bulk_reader import bulk_reader
    from scoring.online.feast_reader import FeastReader

    names = {name for each in missing for name in each.views}
    views = tuple(view for view in features.views if view.name in names)
    part = msgspec.structs.replace(features, features=tuple(missing), views=views)
    if any(each.on_demand for each in missing):
        return None
    reader = bulk_reader(store, part)
    if reader is None and not any(view.renamed for view in views):
        reader = FeastReader(store, part, sorted({each.column for each in missing} | {v.columns[0] for v in views}))
    return reader
