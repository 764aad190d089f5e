"""The Dagster code location."""

import dagster as dg

from serving_assets.batch_assets import batch_input, batch_output
from serving_assets.feature_assets import feast_registry, online_store
from serving_assets.jobs import EXECUTOR, refresh_online_store, score_batch, serve_batch
from serving_assets.model_version import registered_model_version
from serving_assets.request_sensors import new_batch_request, score_the_others
from serving_assets.requests import batch_request
from serving_assets.resources import Serving
from serving_assets.schedules import hourly_online_store
from serving_assets.version_sensor import new_model_version

definitions = dg.Definitions(
    assets=[batch_request, feast_registry, online_store, registered_model_version, batch_input, batch_output],
    jobs=[score_batch, serve_batch, refresh_online_store],
    sensors=[new_model_version, new_batch_request, score_the_others],
    schedules=[hourly_online_store],
    resources={"serving": Serving()},
    executor=EXECUTOR,
)
