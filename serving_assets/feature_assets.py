"""The assets made by Feast: its registry of definitions, and its online store."""

import hashlib
import time
from datetime import UTC, datetime

import dagster as dg

from scoring.feature_store import apply_definitions, materialize_online_store
from serving_assets.failures import failing_in_one_line
from serving_assets.resources import Serving

GROUP = "features"


@dg.asset(
    group_name=GROUP,
    kinds={"feast"},
    description="Feast's registry, holding what the Python files of the feature repository define (`feast apply`). "
    "Its data version is a hash of the definitions, so an apply that changes nothing makes nothing stale.",
)
def feast_registry(serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Apply the feature repository's definitions."""
    with failing_in_one_line():
        applied = apply_definitions(serving.open_feature_store())
    return dg.MaterializeResult(
        data_version=dg.DataVersion(applied.hash),
        metadata={
            "project": applied.project,
            "entities": ", ".join(applied.entities),
            "feature_views": ", ".join(applied.feature_views),
            "feature_services": ", ".join(applied.feature_services),
            "definitions_hash": applied.hash,
        },
    )


@dg.asset(
    deps=[feast_registry],
    group_name=GROUP,
    kinds={"feast"},
    description="Feast's online store, brought up to now from the offline store (`feast materialize-incremental`): "
    "what POST /inference looks up. Batch scoring does not read it.",
)
def online_store(serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Materialize, in Feast's sense, what is new since each feature view's watermark."""
    started = time.monotonic()
    with failing_in_one_line():
        watermarks = materialize_online_store(serving.open_feature_store(), datetime.now(UTC))
    until = {mark.feature_view: mark.until.isoformat() if mark.until else "never" for mark in watermarks}
    return dg.MaterializeResult(
        data_version=dg.DataVersion(hashlib.sha256(repr(sorted(until.items())).encode()).hexdigest()),
        metadata={
            "watermarks": dg.MetadataValue.json(until),
            "duration_s": round(time.monotonic() - started, 3),
        },
    )
