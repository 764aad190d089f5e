"""Poll the alias, and request runs when it names another version: new_model_version."""

import dagster as dg
import msgspec

from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError
from serving_assets.records.decisions import Registered, RequestState, VersionCursor, adjacent_ranges, decide_rescoring
from serving_assets.records.history import (
    REGISTERED_TAG,
    SEQUENCE_TAG,
    VERSION_TAG,
    known_requests,
    newest_scored,
    recovered_cursor,
    request_states,
    run_request,
)
from serving_assets.records.requests import NoRequestFolder, list_requests
from serving_assets.resources import Serving
from serving_assets.sensors.jobs import REQUESTS_PER_RUN, pinned, score_batch

INTERVAL_S = 5


@dg.sensor(
    name="new_model_version",
    job=score_batch,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_S,
    description="Scores the newest batch request again (all of them if SERVING_RESCORE is all) when the alias names "
    "another model version than before.",
)
def new_model_version(
    context: dg.SensorEvaluationContext, serving: dg.ResourceParam[Serving]
) -> dg.SensorResult | dg.SkipReason:
    """Check the alias once. If the registry is unreachable, the tick fails and the cursor is unchanged."""
    cursor = _read_cursor(context)
    try:
        settings = serving.settings
        named = serving.registry.resolve(settings.model_name, settings.model_alias)
        version = Registered(named.data_version, named.created_ms)
        requests = [] if version == cursor.handled else _requests(context.instance, serving)
    except (AliasNotSet, ModelNotRegistered, NoRequestFolder) as error:
        return dg.SkipReason(str(error))
    except ServingError as error:
        raise error from None
    decision = decide_rescoring(cursor, version, requests)
    if not decision.score:
        return dg.SensorResult(skip_reason=decision.reason, cursor=_written(decision.cursor))
    sequence = str(decision.cursor.sequence)
    ranges = adjacent_ranges(decision.score, known_requests(context.instance), REQUESTS_PER_RUN)
    runs = [
        run_request(
            *each,
            # The sequence keeps a rollback from being deduplicated; the place distinguishes the ranges of one decision.
            run_key=f"{version}:{sequence}" + (f":{place}" if place else ""),
            run_config=pinned(named.version),
            tags={VERSION_TAG: str(version), REGISTERED_TAG: str(version.created_ms), SEQUENCE_TAG: sequence},
        )
        for place, each in enumerate(ranges)
    ]
    return dg.SensorResult(run_requests=runs, cursor=_written(decision.cursor))


def _requests(instance: dg.DagsterInstance, serving: Serving) -> list[RequestState]:
    known = known_requests(instance)
    partitions = set(known)
    keys = [file.key for file in list_requests(serving.settings.batch_requests) if file.key in partitions]
    keys = list(dict.fromkeys(keys))
    if serving.settings.rescore == "all":
        return request_states(instance, keys, known)
    newest = request_states(instance, keys[-1:], known)
    if not newest or newest[0].run_in_flight or newest[0].scored_with is not None or not newest[0].has_run:
        return newest
    # It was refused, or its run failed: the newest request with a result must not wait for its correction.
    scored = newest_scored(instance, keys[:-1])
    return request_states(instance, [*scored, keys[-1]], known) if scored else newest


def _written(cursor: VersionCursor) -> str:
    return msgspec.json.encode(cursor).decode()


def _read_cursor(context: dg.SensorEvaluationContext) -> VersionCursor:
    if context.cursor:
        try:
            return msgspec.json.decode(context.cursor, type=VersionCursor)
        except msgspec.MsgspecError:
            context.log.warning("The cursor is invalid. It is recovered from the latest run.")
    return recovered_cursor(context.instance, context.sensor_name)
