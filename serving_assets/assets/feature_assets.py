"""The assets that Feast writes: its registry of definitions, and its online store."""

import hashlib
import time
from datetime import UTC, datetime

import dagster as dg
from pydantic import Field

from scoring.features.feature_store import AppliedDefinitions, apply_definitions
from scoring.features.materialize import materialize_online_store
from serving_assets.assets.failures import failing_in_one_line
from serving_assets.records.observations import DATA_VERSION_TAG
from serving_assets.resources import Serving

GROUP = "features"
# Dagster's tag for the data version of an input (1.13). By default, it is the version that was recorded when the step
# began.
DEFINITIONS_TAG = "dagster/input_data_version/feast_registry"


@dg.asset(
    group_name=GROUP,
    kinds={"feast"},
    description="Feast's registry: the definitions in the feature repository's Python files (`feast apply`). "
    "Its data version is a hash of the definitions, so an apply without changes makes nothing stale.",
)
def feast_registry(serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Apply the feature repository's definitions."""
    with failing_in_one_line():
        applied = apply_definitions(serving.open_feature_store())
    return dg.MaterializeResult(data_version=dg.DataVersion(applied.hash), metadata=_metadata(applied, "this asset"))


def applied_elsewhere(instance: dg.DagsterInstance, found: AppliedDefinitions) -> dg.AssetMaterialization | None:
    """Return an event that records these definitions as feast_registry; None if they are already recorded.

    Without it, if `feast apply` runs outside Dagster (in a release, for example), Dagit would always mark the asset as
    missing, and no output as stale after a change.
    """
    latest = instance.get_latest_materialization_event(feast_registry.key)
    known = latest.asset_materialization if latest else None
    if known is not None and (known.tags or {}).get(DATA_VERSION_TAG) == found.hash:
        return None
    return dg.AssetMaterialization(
        feast_registry.key,
        description="These definitions were applied outside Dagster, and found by a run that reads them.",
        metadata=_metadata(found, "outside Dagster"),
        tags={DATA_VERSION_TAG: found.hash},
    )


def _metadata(applied: AppliedDefinitions, by: str) -> dict[str, str]:
    return {
        "project": applied.project,
        "entities": ", ".join(applied.entities),
        "feature_views": ", ".join(applied.feature_views),
        "feature_services": ", ".join(applied.feature_services),
        "definitions_hash": applied.hash,
        "applied_by": by,
    }


class Materialization(dg.Config):
    """Run configuration of online_store."""

    everything: bool = Field(
        default=False,
        description="Copy all rows within their TTL again. Use it after the store has lost data.",
    )
    overwrite: bool = Field(
        default=False,
        description="Copy all rows within their TTL again, and replace rows with the same or a newer event time. Use "
        "it after a source was corrected without new event times.",
    )


@dg.asset(
    deps=[feast_registry],
    group_name=GROUP,
    kinds={"feast"},
    description="Feast's online store, updated from the offline store (`feast materialize-incremental`). "
    "`POST /inference` reads it; batch scoring does not.",
)
def online_store(config: Materialization, serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Copy rows that are newer than each feature view's watermark (or all rows) to Feast's online store."""
    started = time.monotonic()
    with failing_in_one_line():
        store = serving.open_feature_store()
        options = {"everything": config.everything, "overwrite": config.overwrite}
        watermarks = materialize_online_store(store, datetime.now(UTC), **options)
    until = {mark.feature_view: mark.until.isoformat() if mark.until else "never" for mark in watermarks}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(hashlib.sha256(repr(sorted(until.items())).encode()).hexdigest()),
        metadata={
            "watermarks": dg.MetadataValue.json(until),
            "duration_s": round(time.monotonic() - started, 3),
        },
    )
