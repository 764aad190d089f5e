"""The jobs that users, sensors and schedules launch."""

import dagster as dg

from serving_assets.assets.challenger import promote_version
from serving_assets.assets.everyone import everyone

# Importing Feast, MLflow and scikit-learn takes seconds and 300 MB. One process does it once per run, not per step.
EXECUTOR = dg.in_process_executor

# Dagster records one planning event per asset and request, which takes 25 ms of CPU per request on SQLite: a run over
# 1000 requests starts after 24 s. Smaller runs import the libraries more often.
REQUESTS_PER_RUN = 250

# With scores_table, if the code location has it.
SCORED = dg.AssetSelection.assets("batch_input") | dg.AssetSelection.assets("batch_output").downstream()

score_batch = dg.define_asset_job(
    name="score_batch",
    selection=dg.AssetSelection.assets("registered_model_version") | SCORED,
    description="Score batch requests with the version that the alias names, or a pinned one: "
    "`ops: {registered_model_version: {config: {version: 7}}}`, or the tag `serving/version`.",
)

serve_batch = dg.define_asset_job(
    name="serve_batch",
    selection=dg.AssetSelection.assets("feast_registry", "online_store", "registered_model_version") | SCORED,
    description="Apply the feature definitions, update the online store, and score.",
)

refresh_online_store = dg.define_asset_job(
    name="refresh_online_store",
    selection=dg.AssetSelection.assets("online_store"),
    description="Update the online store (feast materialize-incremental).",
)

# In the code location only with its assets.
replay_day = dg.define_asset_job(
    name="replay_day",
    selection=dg.AssetSelection.assets("prediction_log", "replay"),
    description="Count and replay the prediction log of a day (UTC), which is the partition.",
)


@dg.job(
    description="Write a batch request with every entity as of the latest midnight in UTC, or of another time: "
    "`ops: {everyone: {config: {as_of: 2026-11-30}}}`. The sensor new_batch_request scores it."
)
def request_everyone() -> None:
    """Write a batch request with every entity."""
    everyone()


@dg.job(
    description="Set the alias on the challenger if its comparison passes the thresholds (SERVING_PROMOTE_*), or on "
    "another version: `ops: {promote_version: {config: {version: 7}}}`. `force: true` skips the thresholds."
)
def promote() -> None:
    """Move the alias."""
    promote_version()


def pinned(version: int) -> dict[str, object]:
    """Return the run configuration that pins this model version."""
    return {"ops": {"registered_model_version": {"config": {"version": version}}}}
