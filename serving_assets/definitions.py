"""The Dagster code location."""

import itertools
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import dagster as dg
from dagster._core.secrets.env_file import get_env_var_dict

from scoring.batch.scores_table import TABLE_VARIABLE
from scoring.errors import SettingsError
from scoring.settings import Settings
from serving_assets.assets.batch_assets import batch_input, batch_output, batch_request
from serving_assets.assets.challenger import challenger_comparison
from serving_assets.assets.feature_assets import feast_registry, online_store
from serving_assets.assets.model_version import registered_model_version
from serving_assets.assets.monitoring import LOG_VARIABLE, prediction_log, replay
from serving_assets.assets.scores_table import scores_table
from serving_assets.resources import Serving
from serving_assets.sensors.jobs import (
    EXECUTOR,
    promote,
    refresh_online_store,
    request_everyone,
    score_batch,
    serve_batch,
)
from serving_assets.sensors.request_sensors import new_batch_request, score_the_others
from serving_assets.sensors.schedules import all_schedules
from serving_assets.sensors.version_sensor import new_model_version

ASSETS = (
    batch_request,
    feast_registry,
    online_store,
    registered_model_version,
    batch_input,
    batch_output,
    challenger_comparison,
)


OPTIONAL = {TABLE_VARIABLE: (scores_table,), LOG_VARIABLE: (prediction_log, replay)}
"""Setting → the assets that are in the graph only if it is set."""


def assets(environment: Mapping[str, str]) -> tuple[dg.AssetsDefinition, ...]:
    """Return the assets of the graph."""
    chosen = [assets for setting, assets in OPTIONAL.items() if environment.get(setting, "").strip()]
    return (*ASSETS, *itertools.chain.from_iterable(chosen))


def schedules(environment: Mapping[str, str]) -> tuple[dg.ScheduleDefinition, ...]:
    """Return the schedules: that of the replay only with its assets."""
    logged = environment.get(LOG_VARIABLE, "").strip()
    found = all_schedules(settings_or_defaults(environment).schedules)
    return tuple(each for each in found if logged or each.name != "daily_replay")


def settings_or_defaults(environment: Mapping[str, str]) -> Settings:
    """Return the settings, or the default ones if one is invalid: runs and ticks report it."""
    try:
        return Settings.from_environment(environment)
    except SettingsError:
        return Settings(model_name="none")


def overriding(folder: Path) -> tuple[str, ...]:
    """Return the variables that a `.env` file in `folder` overrides in Dagster's commands."""
    return tuple(
        name for name in get_env_var_dict(str(folder)) if name.startswith(("SERVING_", "MLFLOW_", "FEAST_", "AWS_"))
    )


if overridden := overriding(Path.cwd()):
    logging.getLogger("dagster").warning(
        "%s sets %s. Dagster lets these override the environment, but the API does not, so batch and online may "
        "differ: start Dagster's commands in another folder.",
        Path.cwd() / ".env",
        ", ".join(overridden),
    )

# Owners, schedules and the table are read here, because Dagster needs them when it loads the code location.
owners = settings_or_defaults(os.environ).batch_owners
definitions = dg.Definitions(
    assets=dg.map_asset_specs(lambda spec: spec.replace_attributes(owners=owners), assets(os.environ)),
    jobs=[score_batch, serve_batch, refresh_online_store, request_everyone, promote],
    sensors=[new_model_version, new_batch_request, score_the_others],
    schedules=schedules(os.environ),
    resources={"serving": Serving()},
    executor=EXECUTOR,
)
