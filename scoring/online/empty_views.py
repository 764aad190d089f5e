"""Finds feature views without a row in the online store, for which every entity is `not_found`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scoring.features.model_features import ModelFeatures
from scoring.online.stored_keys import key_lister
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

PROJECT = Path(__file__).resolve().parents[2]
_NO_ROW = object()


class EmptyViews:
    """The feature views of one model version that had no row in the online store when it was last searched.

    SQLite and Redis are searched for a row of each view. Other stores can't list their rows, so that a view counts as
    empty if Feast's registry records no materialization, until a lookup finds a row.
    """

    def __init__(self, store: "FeatureStore", features: ModelFeatures) -> None:
        """Search once, ignoring store errors."""
        views = [features.feast.views[view.name] for view in features.views]
        self._views = {view.name: view for view in views}
        self._store = store
        self._list_keys = key_lister(store)
        self.names: Sequence[str] = sorted(self._views)
        """Names in the Feast registry."""
        if self._list_keys is None:
            self.names = [name for name in self.names if not self._views[name].materialization_intervals]
        self.search_again()

    def search_again(self) -> None:
        """Search again, unless every view had a row. Ignore store errors."""
        if self.names and self._list_keys is not None:
            try:
                # A view is not reported if the search ended before the store did.
                self.names = [
                    name
                    for name in self.names
                    if next(self._list_keys(self._store, self._views[name]), _NO_ROW) is _NO_ROW
                ]
            except Exception:  # exception types differ between clients; the store's probe reports the failure
                self.names = ()

    def row_found(self) -> None:
        """Record that a lookup found a row."""
        if self._list_keys is None:
            self.names = ()


def empty_views_problem(names: Sequence[str], settings: Settings) -> str:
    """Return a sentence that names feature views without a row in the online store, and how to fill it."""
    default = settings.feature_store_yaml == "feature_store.yaml"
    yaml = "" if default else f" -f {settings.feature_repo / settings.feature_store_yaml}"
    # feature_store.yaml may name classes of this project, which Feast's command finds by PYTHONPATH.
    feast = f"PYTHONPATH={PROJECT} {Path(sys.executable).with_name('feast')} -c {settings.feature_repo}{yaml}"
    views = f"feature view{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}"
    return (
        f"The online store has no row of {views}: materialize the asset online_store (with `everything: true` if the "
        f"store has lost its rows), or run `{feast} materialize-incremental $(date -u +%Y-%m-%dT%H:%M:%S)`."
    )
