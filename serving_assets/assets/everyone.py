"""The step that writes a batch request with every entity."""

import dagster as dg
from pydantic import Field

from scoring.batch.everyone import everyone_file, read_as_of, write_everyone
from scoring.serving import link_registered_version, resolve_version
from serving_assets.assets.failures import failing_in_one_line
from serving_assets.resources import Serving


class AsOf(dg.Config):
    """Run configuration of everyone."""

    as_of: str | None = Field(
        default=None, description="The rows' event_timestamp in ISO 8601. The default is the latest midnight in UTC."
    )


@dg.op(description="Writes a batch request with each entity that has a feature within its time to live at `as_of`.")
def everyone(context: dg.OpExecutionContext, config: AsOf, serving: dg.ResourceParam[Serving]) -> None:
    """Write the file into the request folder, where new_batch_request finds it."""
    with failing_in_one_line():
        settings, as_of = serving.settings, read_as_of(config.as_of)
        version = resolve_version(serving.registry, settings)
        store = serving.open_feature_store()
        features = link_registered_version(serving.registry, store, version, settings)
        file = settings.batch_requests / everyone_file(as_of)
        rows = write_everyone(store, features, as_of, file)
    context.log.info(f"{file}: {rows} entities of {version} as of {as_of.isoformat()}.")
