"""The sensors: they look at the registry and at the request folder, and ask for runs as `decisions` decides."""

import time

import dagster as dg
import msgspec

from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError
from scoring.serving import resolve_version
from serving_assets.decisions import VersionCursor, adjacent_ranges, decide_rescoring
from serving_assets.history import (
    ASKED_SEQUENCE,
    ASKED_VERSION,
    RANGE_END,
    RANGE_START,
    known_requests,
    recovered_cursor,
    request_state,
)
from serving_assets.jobs import score_batch
from serving_assets.model_version import registered_model_version
from serving_assets.requests import SAFE_KEY_TEXT, RequestFile, batch_requests, is_safe_key, list_requests
from serving_assets.resources import Serving

INTERVAL_S = 5
# A file that was written to a moment ago may not be complete.
SETTLED_AFTER_S = 2


@dg.sensor(
    name="new_model_version",
    job=score_batch,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_S,
    description="Scores the newest batch request again when the alias names another model version than before.",
)
def new_model_version(
    context: dg.SensorEvaluationContext, serving: dg.ResourceParam[Serving]
) -> dg.SensorResult | dg.SkipReason:
    """One look at the alias. An unreachable registry fails the tick, and the cursor stays as it was."""
    try:
        found = resolve_version(serving.registry, serving.settings)
    except (AliasNotSet, ModelNotRegistered) as error:
        return dg.SkipReason(str(error))
    except ServingError as error:
        raise error from None
    version = found.data_version
    cursor = _read_cursor(context)
    if version == cursor.handled:
        return dg.SensorResult(
            skip_reason=f"The alias still names {version}.", cursor=msgspec.json.encode(cursor).decode()
        )
    instance = context.instance
    known = known_requests(instance)
    files = [file.key for file in list_requests(serving.settings.batch_requests) if file.key in known]
    newest = request_state(instance, files[-1], known) if files else None
    decision = decide_rescoring(cursor, version, newest)
    state = msgspec.json.encode(decision.cursor).decode()
    if decision.score is None:
        return dg.SensorResult(skip_reason=decision.reason, cursor=state)
    sequence = str(decision.cursor.sequence)
    request = dg.RunRequest(
        run_key=f"{version}:{sequence}",
        partition_key=decision.score,
        run_config={"ops": {registered_model_version.key.to_user_string(): {"config": {"version": found.version}}}},
        tags={ASKED_VERSION: version, ASKED_SEQUENCE: sequence},
    )
    return dg.SensorResult(run_requests=[request], cursor=state)


@dg.sensor(
    name="new_batch_request",
    job=score_batch,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_S,
    description="Adds a partition for each new file in the request folder and scores them, many files in one run.",
)
def new_batch_request(
    context: dg.SensorEvaluationContext, serving: dg.ResourceParam[Serving]
) -> dg.SensorResult | dg.SkipReason:
    """One look at the request folder. New files wait, unremembered, until a model version can score them."""
    try:
        known = known_requests(context.instance)
        files = list_requests(serving.settings.batch_requests)
        new = [file for file in files if file.key not in known and is_safe_key(file.key)]
        settled = [file for file in new if file.modified_ns < (time.time() - SETTLED_AFTER_S) * 1e9]
        if not settled:
            return dg.SkipReason(_nothing_new(files, len(new)))
        resolve_version(serving.registry, serving.settings)
    except (AliasNotSet, ModelNotRegistered) as error:
        return dg.SkipReason(f"{len(settled)} batch requests wait for a model version. {error}")
    except ServingError as error:
        raise error from None
    keys = list(dict.fromkeys(file.key for file in settled))
    return dg.SensorResult(
        dynamic_partitions_requests=[batch_requests.build_add_request(keys)],
        run_requests=[_first_scoring(settled, first, last) for first, last in adjacent_ranges(keys, [*known, *keys])],
    )


def _first_scoring(files: list[RequestFile], first: str, last: str) -> dg.RunRequest:
    written = max(file.modified_ns for file in files)
    run_key = f"{first}...{last}:{written}"
    if first == last:
        return dg.RunRequest(run_key=run_key, partition_key=first)
    return dg.RunRequest(run_key=run_key, tags={RANGE_START: first, RANGE_END: last})


def _nothing_new(files: list[RequestFile], unsettled: int) -> str:
    unsafe = sorted(file.name for file in files if not is_safe_key(file.key))
    if unsafe:
        return f"Not taken: {', '.join(unsafe[:10])}. A request's name needs {SAFE_KEY_TEXT}."
    return f"{unsettled} new files are still being written." if unsettled else "No new file in the request folder."


def _read_cursor(context: dg.SensorEvaluationContext) -> VersionCursor:
    if context.cursor:
        try:
            return msgspec.json.decode(context.cursor, type=VersionCursor)
        except msgspec.MsgspecError:
            context.log.warning("The cursor was not readable and is recovered from the latest run.")
    return recovered_cursor(context.instance, context.sensor_name)
