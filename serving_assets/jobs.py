"""The two jobs that people and sensors launch, each for one batch request or a range of them."""

import dagster as dg

# Feast, MLflow and scikit-learn take seconds and 300 MB to import: once a run, not once a step.
EXECUTOR = dg.in_process_executor

score_batch = dg.define_asset_job(
    name="score_batch",
    selection=dg.AssetSelection.assets("registered_model_version", "batch_input", "batch_output"),
    description="Score batch requests with the version that the alias names, or with a pinned one: "
    "ops: {registered_model_version: {config: {version: 7}}}.",
)

serve_batch = dg.define_asset_job(
    name="serve_batch",
    selection=dg.AssetSelection.assets(
        "feast_registry", "online_store", "registered_model_version", "batch_input", "batch_output"
    ),
    description="Everything: apply the feature definitions, bring the online store up to now, and score.",
)
