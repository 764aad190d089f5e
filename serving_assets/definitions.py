"""The Dagster code location."""

import dagster as dg

from serving_assets.batch_assets import batch_input, batch_output
from serving_assets.feature_assets import feast_registry, online_store
from serving_assets.jobs import EXECUTOR, score_batch, serve_batch
from serving_assets.model_version import registered_model_version
from serving_assets.resources import Serving
from serving_assets.sensors import new_batch_request, new_model_version

definitions = dg.Definitions(
    assets=[feast_registry, online_store, registered_model_version, batch_input, batch_output],
    jobs=[score_batch, serve_batch],
    sensors=[new_model_version, new_batch_request],
    resources={"serving": Serving()},
    executor=EXECUTOR,
)
