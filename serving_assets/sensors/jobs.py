"""The jobs that people, sensors and schedules launch."""

import dagster as dg

# Feast, MLflow and scikit-learn take seconds and 300 MB to import: once a run, not once a step.
EXECUTOR = dg.in_process_executor

# Dagster plans each asset of each request of a run by an event of its own, 25 ms of CPU a request on SQLite: a run of
# 1000 takes 24 s until it starts. Much smaller ones would import everything more often.
REQUESTS_PER_RUN = 250

score_batch = dg.define_asset_job(
    name="score_batch",
    selection=dg.AssetSelection.assets("registered_model_version", "batch_input", "batch_output"),
    description="Score batch requests with the version that the alias names, or with a pinned one: "
    "`ops: {registered_model_version: {config: {version: 7}}}`.",
)

serve_batch = dg.define_asset_job(
    name="serve_batch",
    selection=dg.AssetSelection.assets(
        "feast_registry", "online_store", "registered_model_version", "batch_input", "batch_output"
    ),
    description="Everything: apply the feature definitions, bring the online store up to now, and score.",
)

refresh_online_store = dg.define_asset_job(
    name="refresh_online_store",
    selection=dg.AssetSelection.assets("online_store"),
    description="Bring the online store up to now (feast materialize-incremental).",
)


def pinned(version: int) -> dict[str, object]:
    """Run configuration that makes a run use exactly this model version."""
    return {"ops": {"registered_model_version": {"config": {"version": version}}}}
