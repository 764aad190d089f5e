"""Fills the online store from the offline store, and reads how far each view is filled."""

import contextlib
import io
import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from scoring.errors import FeatureStoreError, NotMaterialized
from scoring.feast_plugins.redis_timeouts import REDIS_TIMEOUT_S, bound_redis
from scoring.foreign_errors import first_line, is_outage
from scoring.imports import inside

if TYPE_CHECKING:
    from feast import FeatureStore

logger = logging.getLogger(__name__)

BEFORE_ALL_ROWS = datetime(1970, 1, 1, tzinfo=UTC)


class Watermark(msgspec.Struct, frozen=True):
    """The time up to which a feature view is materialized; None if it was never materialized."""

    feature_view: str
    until: datetime | None


def materialize_online_store(
    store: "FeatureStore", until: datetime, *, everything: bool = False, overwrite: bool = False
) -> list[Watermark]:
    """Copy new rows of the offline store, up to `until` (with a time zone), to the online store.

    This is Feast's own materialize-incremental: it continues from each view's watermark and moves it once all rows are
    written. If feature_store.yaml names no batch engine, this project's faster one (`feast_plugins.materialization`)
    writes the rows. If a view fails, the others are still materialized.

    Args:
        store: the Feast store.
        until: the end of the period.
        everything: whether to copy all rows within their view's time to live, even if they were copied before. Use it
            for an online store that lost its rows, which the watermarks in Feast's registry do not show.
        overwrite: whether to do that and also replace rows whose event time is the same or newer, which Redis otherwise
            keeps. Use it for a source that was corrected.

    Returns:
        The new watermarks.

    Raises:
        FeatureStoreError: Feast's registry can't be read.
        NotMaterialized: a source can't be read or the online store can't be written, for the views that it names. A
            retry continues from their old watermarks.
    """
    failed: dict[str, BaseException | str] = {}
    outage: Exception | None = None
    try:
        bound_redis(store.config, REDIS_TIMEOUT_S)
        if overwrite and hasattr(store.config.online_store, "skip_dedup"):  # Redis compares event times otherwise
            store.config.online_store.skip_dedup = True
        with inside(Path(store.repo_path)), contextlib.redirect_stdout(io.StringIO()):
            _use_streaming_engine(store)
            for view in store._get_feature_views_to_materialize(None):
                if outage is not None:
                    failed[view.name] = "skipped after that failure"
                    continue
                try:
                    if everything or overwrite:
                        ttl: timedelta | None = getattr(view, "ttl", None)
                        store.materialize(until - ttl if ttl else BEFORE_ALL_ROWS, until, feature_views=[view.name])
                    else:
                        store.materialize_incremental(until, feature_views=[view.name])
                except Exception as error:  # exception types differ between sources and online stores
                    logger.warning("Materializing feature view %r", view.name, exc_info=True)
                    failed[view.name] = _why(view, error)
                    outage = error if is_outage(error) else None
    except Exception as error:
        raise FeatureStoreError("materializing the online store", error) from error
    if failed:
        raise NotMaterialized(failed) from outage
    store.refresh_registry()
    return read_watermarks(store)


def _why(view: Any, error: Exception) -> BaseException | str:
    if is_outage(error):
        return (
            f"the online store did not respond ({first_line(error)}): check that it is running, and check its address, "
            "password and ssl= in feature_store.yaml"
        )
    if str(error).startswith("Value type not supported for feast feature store: uuid_val"):
        return "its join key is declared UUID, which Feast (0.67) can't write to an online store: declare it String"
    mode = getattr(view, "mode", None)
    if str(getattr(mode, "value", mode)).startswith("spark") and isinstance(error, AttributeError):
        return "its mode is spark, and feature_store.yaml names no Spark batch_engine: name one, or set online=False"
    return error


def _use_streaming_engine(store: "FeatureStore") -> None:
    """Replace Feast's local batch engine with this project's. Keep any other engine."""
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
    """Return how far each feature view with an online store is materialized, sorted by name."""
    views = store.registry.list_feature_views(store.project)
    return [
        Watermark(view.name, max((end for _, end in view.materialization_intervals), default=None))
        for view in sorted(views, key=lambda view: view.name)
        if view.online
    ]
