"""The assets of a batch request: batch_input joins its rows with features, and batch_output scores them."""

import functools
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import dagster as dg

from scoring.batch.manifest import Origin, ScoringSummary
from scoring.batch.quality import source_ages
from scoring.batch.request import copied_request
from scoring.errors import BatchRequestError, listed
from scoring.features.feature_store import read_definitions
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location
from scoring.files.transfer import Content
from scoring.monitoring.baseline import content_in, read_baseline, registered_baseline
from scoring.predict import Policy
from scoring.serving import link_registered_version, load_serving_model
from serving_assets.assets import checks
from serving_assets.assets.display import counts_table
from serving_assets.assets.failures import failing_in_one_line
from serving_assets.assets.feature_assets import DEFINITIONS_TAG, applied_elsewhere, feast_registry
from serving_assets.assets.inspection import InputInspection, OutputInspection, earlier_predictions, fresh_finding
from serving_assets.assets.model_version import (
    INPUT_TAG,
    Chosen,
    chosen_by_inputs,
    origin_metadata,
    registered_model_version,
    version_for_input,
    version_recorded_in_run,
)
from serving_assets.assets.problems import RequestProblems
from serving_assets.records.history import PARTITION, known_requests, last_scored_request
from serving_assets.records.observations import last_seen, latest_event, refused_event, seen_event
from serving_assets.records.request_changes import Known, find_changes
from serving_assets.records.requests import (
    BATCH_REQUEST,
    GROUP,
    RequestFile,
    batch_requests,
    find_request,
    list_requests,
    observable_asset,
    read_hash,
    request_asset,
    result_folder,
)
from serving_assets.resources import Serving

# Drawing takes 0.1 s, so only the first requests of a run are plotted.
PLOTS_PER_RUN = 10

Results = Iterator[dg.AssetCheckResult | dg.MaterializeResult[None]]


@observable_asset(
    dg.AssetSpec(
        BATCH_REQUEST,
        partitions_def=batch_requests,
        group_name=GROUP,
        kinds={"file"},
        description="A file of entity rows in the request folder, written by another process. Its data version is the "
        "hash of the content that was read last, so Dagit marks results of older content as stale. Observing it lists "
        "the files that are to be scored.",
        skippable=True,
    )
)
def batch_request(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> Iterator[dg.ObserveResult]:
    """List new and changed files in the log. Only a run that reads a file records its content."""
    with failing_in_one_line():
        folder = serving.settings.batch_requests
        changes = find_changes(folder, list_requests(folder), Known(last_seen(context.instance)))
    names = listed([file.name for file, _ in changes.files]) or "none"
    found = f"New or changed files, which the sensor new_batch_request will score: {names}"
    context.log.info("; ".join([found, *changes.waiting]))
    yield from ()


@request_asset(
    deps=[batch_request, feast_registry, registered_model_version],
    check_specs=checks.specs("batch_input", checks.OF_INPUT),
    kinds={"feast", "parquet"},
    description="The rows of a batch request, in their order, with the model's features as they were known at each "
    "row's `event_timestamp`: `artifacts/<request>/batch_input.parquet`.",
)
def batch_input(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> Results:
    """Join each request of this run's partitions with the features of the run's model version."""
    written: list[Content] = []
    found: dict[str, list[checks.Finding]] = {}
    with failing_in_one_line():
        settings = serving.settings
        files = {file.key: file for file in list_requests(settings.batch_requests)}
        keys = _requests(context, settings.batch_requests, files)
        problems = RequestProblems(context, settings.batch_requests)
        chosen = version_for_input(context.instance, context.run.run_id, serving)
        context.log.info(f"Joining for model version {chosen}, chosen by: {chosen.by}.")
        version = serving.registry.version(chosen.name, chosen.version)
        store = serving.open_feature_store()
        features = link_registered_version(serving.registry, store, version, settings)
        baseline = registered_baseline(serving.registry, version, settings.prediction_log)
        definitions = read_definitions(store)
        if news := applied_elsewhere(context.instance, definitions):
            context.log_event(news)
        fresh = fresh_finding(source_ages(store, features), settings.max_source_age_s, datetime.now(UTC))
        known = last_seen(context.instance, keys)
        for key in keys:
            started = time.monotonic()
            folder = result_folder(settings.artifacts, key)
            inspection = InputInspection(folder / serving.engine.input_name, features, settings, fresh, baseline)
            metadata = origin_metadata(settings, version, features.service, chosen.by)
            with problems.of(key):
                file = files.get(key)
                if file is not None and file.shared:  # refused below; a changed hash makes it eligible again
                    shared = read_hash(settings.batch_requests, file)
                    context.log_event(seen_event(file, shared, known.get(key)))
                request = find_request(settings.batch_requests, files, key)
                metadata["request"] = dg.MetadataValue.path(str(request))
                with copied_request(request) as copy:
                    # Record the hash before reading, so that later changes are detected.
                    if file is not None:
                        context.log_event(seen_event(file, copy.content.sha256, known.get(key)))
                    origin = Origin(copy.content, str(version), features.service, definitions.hash)
                    written.append(serving.engine.write_input(copy, origin, store, features, folder, inspection))
            found[key] = inspection.findings
            metadata |= inspection.metadata
            metadata["duration_s"] = dg.MetadataValue.float(_since(started))
            context.add_asset_metadata(metadata, partition_key=key)
    yield from checks.results("batch_input", checks.OF_INPUT, found)
    with failing_in_one_line():
        problems.fail()
    tags = {INPUT_TAG: version.data_version, DEFINITIONS_TAG: definitions.hash, **latest_event(context.instance)}
    yield dg.MaterializeResult(data_version=content_version(written), tags=tags)


@request_asset(
    deps=[batch_input, registered_model_version],
    check_specs=checks.specs("batch_output", checks.OF_OUTPUT),
    kinds={"mlflow", "parquet"},
    description="The rows of batch_input with the outputs of the model (`prediction`, or `prediction_<name>` for each "
    "of several), a reason if there are none, and the model version that made them: "
    "`artifacts/<request>/batch_output.parquet`. Replaced atomically.\n\n"
    "[Preview, plots and comparison with the replaced version](/assets/batch_output?view=partitions) of each request",
)
def batch_output(context: dg.AssetExecutionContext, serving: dg.ResourceParam[Serving]) -> Results:
    """Score each batch_input.parquet of this run's partitions with the version that it was made for."""
    written: list[Content] = []
    found: dict[str, list[checks.Finding]] = {}
    with failing_in_one_line(), scratch_folder() as scratch, ThreadPoolExecutor(1, "plots") as drawing:
        settings, engine = serving.settings, serving.engine
        problems = RequestProblems(context, settings.batch_requests)
        inputs = {key: result_folder(settings.artifacts, key) for key in context.partition_keys}
        resolved = version_recorded_in_run(context.instance, context.run.run_id, settings.model_name)
        chosen = _version_for_output(serving, inputs.values(), resolved)
        context.log.info(f"Scoring with model version {chosen}, chosen by: {chosen.by}.")
        version = serving.registry.version(chosen.name, chosen.version)
        # Link the version to its features here, too: this asset can be materialized without batch_input.
        serving_model = load_serving_model(serving.registry, serving.open_feature_store(), version, settings, scratch)
        features, policy = serving_model.features, Policy.from_settings(settings)
        logged = content_in(serving_model.files.folder) if serving_model.files else None
        baseline = read_baseline(version, logged, settings.prediction_log)

        @functools.cache
        def scored_before() -> Sequence[Location]:
            previous = last_scored_request(context.instance, other_than=inputs)
            return [result_folder(settings.artifacts, previous)] if previous else []

        for place, (key, folder) in enumerate(inputs.items()):
            started = time.monotonic()
            file = folder / engine.output_name
            earlier = earlier_predictions([folder]) or earlier_predictions(scored_before())
            drawn = drawing if place < PLOTS_PER_RUN else None
            inspection = OutputInspection(file, features, settings, earlier, drawn, baseline)
            with problems.of(key):
                manifest = engine.write_output(folder, serving_model, policy, inspection)
                written.append(manifest.batch_output)
                metadata = origin_metadata(settings, version, features.service, chosen.by) | inspection.metadata
                metadata |= _outcome(manifest.outcome, _since(started))
                context.add_asset_metadata(metadata, partition_key=key)
            found[key] = inspection.findings
    yield from checks.results("batch_output", checks.OF_OUTPUT, found)
    with failing_in_one_line():
        problems.fail()
    yield dg.MaterializeResult(data_version=content_version(written), tags={INPUT_TAG: version.data_version})


def _requests(context: dg.AssetExecutionContext, folder: Location, files: Mapping[str, RequestFile]) -> Sequence[str]:
    """Return the requests of this run. Add the partition if the file exists but no sensor has found it.

    Raises:
        BatchRequestError: the request has no file.
    """
    key = context.run.tags.get(PARTITION)
    if key is not None and key not in known_requests(context.instance):
        try:
            find_request(folder, files, key)
        except BatchRequestError as error:
            context.log_event(refused_event(key, str(error)))  # otherwise, the run would be retried
            raise
        context.instance.add_dynamic_partitions(str(batch_requests.name), [key])
    return list(context.partition_keys)


def _version_for_output(serving: Serving, folders: Iterable[Location], resolved: Chosen | None) -> Chosen:
    """Return the run's version, or that of its first input. Raise unless all inputs were made for it."""
    engine = serving.engine
    made_for = {folder / engine.input_name: engine.read_input_model(folder) for folder in folders}
    expected = str(resolved) if resolved else next(iter(made_for.values()))
    for file, model in made_for.items():
        if model != expected:
            raise BatchRequestError(
                str(file),
                f"it was made for model version {model}, and this run uses {expected}: also materialize batch_input.",
            )
    if resolved:
        return resolved
    name, _, number = expected.rpartition("/")
    return chosen_by_inputs(serving, name, int(number))


def _outcome(outcome: ScoringSummary, seconds: float) -> dict[str, dg.MetadataValue]:
    return {
        "rows_scored": dg.MetadataValue.int(outcome.scored),
        "rows_not_scored": dg.MetadataValue.int(outcome.rows - outcome.scored),
        "reasons": counts_table("reason", outcome.reasons),
        "duration_s": dg.MetadataValue.float(seconds),
        "rows_per_second": dg.MetadataValue.float(round(outcome.rows / max(seconds, 1e-3), 1)),
    }


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def content_version(written: list[Content]) -> dg.DataVersion:
    """Return a hash of the files' digests, so that identical output makes nothing stale."""
    return dg.DataVersion(hashlib.sha256(b"".join(bytes.fromhex(each.sha256) for each in written)).hexdigest())
