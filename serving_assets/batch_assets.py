"""The assets of a batch request: its rows joined with features, and the same rows scored."""

import hashlib
import time
from collections.abc import Iterable
from pathlib import Path

import dagster as dg

from scoring.batch import BatchSummary, read_batch_input_model, write_batch_input, write_batch_output
from scoring.errors import BatchRequestError
from scoring.predict import Policy
from scoring.registry import ModelVersion
from scoring.serving import link_registered_version, load_serving_model
from serving_assets.display import counts_table, table_metadata
from serving_assets.failures import failing_in_one_line
from serving_assets.feature_assets import feast_registry
from serving_assets.model_version import INPUT_TAG, registered_model_version, version_of_run, version_to_use
from serving_assets.requests import batch_requests, find_request, input_file, output_file
from serving_assets.resources import Serving

GROUP = "batch"
OWNERS = ["team:ml-serving"]


@dg.asset(
    partitions_def=batch_requests,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[feast_registry, registered_model_version],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"feast", "parquet"},
    description="The rows of a batch request, in their order, with the model's features as they were known at each "
    "row's event_timestamp: artifacts/<request>/batch_input.parquet.",
)
def batch_input(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Join each request of this run's partitions with the features of the run's model version."""
    failed: dict[str, BatchRequestError] = {}
    with failing_in_one_line():
        settings = serving.settings
        version = version_to_use(context.instance, context.run.run_id, serving)
        store = serving.open_feature_store()
        features = link_registered_version(serving.registry, store, version, settings)
        for key in context.partition_keys:
            started = time.monotonic()
            file = input_file(settings.artifacts, key)
            try:
                request = find_request(settings.batch_requests, key)
                write_batch_input(request, store, str(version), features, file)
            except (
                BatchRequestError
            ) as error:  # one bad file must not keep the other requests of a run from being joined
                failed[key] = error
                continue
            context.add_asset_metadata(
                _origin(version, features.service)
                | {"request": dg.MetadataValue.path(str(request.resolve())), "duration_s": _since(started)}
                | table_metadata(file),
                partition_key=key,
            )
        if failed:
            raise _first_of(failed, len(context.partition_keys))
    files = [input_file(settings.artifacts, key) for key in context.partition_keys]
    return dg.MaterializeResult(data_version=_content_version(files), tags={INPUT_TAG: version.data_version})


@dg.asset(
    partitions_def=batch_requests,
    backfill_policy=dg.BackfillPolicy.single_run(),
    deps=[batch_input, registered_model_version],
    group_name=GROUP,
    owners=OWNERS,
    kinds={"scikitlearn", "parquet"},
    description="The rows of batch_input with prediction, reason (where there is none) and the model version that made "
    "it: artifacts/<request>/batch_output.parquet. Replaced as a whole, or left as it was.",
)
def batch_output(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> dg.MaterializeResult[None]:
    """Score each batch_input.parquet of this run's partitions with the version that it was made for."""
    with failing_in_one_line():
        settings = serving.settings
        inputs = {key: input_file(settings.artifacts, key) for key in context.partition_keys}
        name, number = _version_of_inputs(inputs.values(), version_of_run(context.instance, context.run.run_id))
        version = serving.registry.version(name, number)
        # Links the model to its features once more: this asset can be materialized without batch_input.
        serving_model = load_serving_model(serving.registry, serving.open_feature_store(), version, settings)
        features = serving_model.features
        for key, source in inputs.items():
            started = time.monotonic()
            file = output_file(settings.artifacts, key)
            summary = write_batch_output(source, serving_model.model, features, Policy.from_settings(settings), file)
            context.add_asset_metadata(
                _origin(version, features.service) | _outcome(summary, _since(started)) | table_metadata(file),
                partition_key=key,
            )
    files = [output_file(settings.artifacts, key) for key in context.partition_keys]
    return dg.MaterializeResult(data_version=_content_version(files), tags={INPUT_TAG: version.data_version})


def _version_of_inputs(files: Iterable[Path], resolved: tuple[str, int] | None) -> tuple[str, int]:
    made_for = {file: read_batch_input_model(file) for file in files}
    expected = f"{resolved[0]}/{resolved[1]}" if resolved else next(iter(made_for.values()))
    for file, model in made_for.items():
        if model != expected:
            raise BatchRequestError(
                str(file),
                f"it was made for model version {model}, and this run uses {expected}: materialize batch_input, too.",
            )
    name, _, number = expected.rpartition("/")
    return name, int(number)


def _origin(version: ModelVersion, service: str) -> dict[str, dg.MetadataValue]:
    return {
        "model_name": dg.MetadataValue.text(version.name),
        "model_version": dg.MetadataValue.int(version.version),
        "feature_service": dg.MetadataValue.text(service),
    }


def _outcome(summary: BatchSummary, seconds: float) -> dict[str, dg.MetadataValue]:
    return {
        "rows_scored": dg.MetadataValue.int(summary.scored),
        "rows_not_scored": dg.MetadataValue.int(summary.rows - summary.scored),
        "reasons": counts_table("reason", summary.reasons),
        "duration_s": dg.MetadataValue.float(seconds),
        "rows_per_second": dg.MetadataValue.float(round(summary.rows / max(seconds, 1e-3), 1)),
    }


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def _first_of(failed: dict[str, BatchRequestError], total: int) -> BatchRequestError:
    first = next(iter(failed.values()))
    if total == 1:
        return first
    others = f"{len(failed)} of the run's {total} requests can't be scored ({', '.join(list(failed)[:20])}). {first}"
    return BatchRequestError(first.file, others)


def _content_version(files: list[Path]) -> dg.DataVersion:
    """SHA-256 over the files' bytes: a run that writes the same bytes again makes nothing stale."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return dg.DataVersion(digest.hexdigest())
