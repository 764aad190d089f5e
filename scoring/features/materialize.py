"""Fill the online store from the offline store, and read how far each view is filled."""

import contextlib
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scoring.errors import FeatureStoreError
from scoring.imports import inside

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView

BEFORE_ALL_ROWS = datetime(1970, 1, 1, tzinfo=UTC)


class Watermark(msgspec.Struct, frozen=True):
    """The time up to which a feature view's rows are in the online store; None if nothing was materialized yet."""

    feature_view: str
    until: datetime | None


def materialize_online_store(store: "FeatureStore", until: datetime, *, everything: bool = False) -> list[Watermark]:
    """Copy what is new in the offline store, up to `until` (with a time zone), to the online store.

    With `everything`, all that is not older than its view's time to live is copied, even if it was copied before: for
    an online store that lost its rows, which the watermarks in Feast's registry don't show.

    This is Feast's own materialize-incremental: it continues from each view's watermark and moves it once all rows are
    written. Where feature_store.yaml names no batch engine, this project's (`feast_plugins.materialization`) writes the
    rows, faster. Returns the new watermarks.

    Raises:
        FeatureStoreError: a source can't be read or the online store can't be written. A retry continues from the old
            watermark.
    """
    try:
        with inside(Path(store.repo_path)), contextlib.redirect_stdout(io.StringIO()):
            _use_streaming_engine(store)
            if everything:
                for view in _online_views(store):
                    since = until - view.ttl if view.ttl else BEFORE_ALL_ROWS
                    store.materialize(since, until, feature_views=[view.name])
            else:
                store.materialize_incremental(end_date=until)
    except Exception as error:
        raise FeatureStoreError("materializing the online store", error) from error
    store.refresh_registry()
    return read_watermarks(store)


def _use_streaming_engine(store: "FeatureStore") -> None:
    """Replace Feast's local batch engine with this project's; leave any other that was chosen."""
    from feast.infra.compute_engines.local.compute import LocalComputeEngine
    from feast.infra.passthrough_provider import PassthroughProvider

    provider = store.provider
    if not isinstance(provider, PassthroughProvider):
        return
    engine = provider.batch_engine
    if type(engine) is LocalComputeEngine and engine.backend_name is None:
        from scoring.feast_plugins.materialization import StreamingComputeEngine

        provider._batch_engine = StreamingComputeEngine(
            repo_config=store.config, offline_store=provider.offline_store, online_store=provider.online_store
        )


def read_watermarks(store: "FeatureStore") -> list[Watermark]:
    """How far each feature view with an online store is materialized, by name."""
    return [
        Watermark(view.name, max((end for _, end in view.materialization_intervals), default=None))
        for view in _online_views(store)
    ]


def _online_views(store: "FeatureStore") -> "list[FeatureView]":
    return sorted((view for view in store.list_batch_feature_views() if view.online), key=lambda view: view.name)
