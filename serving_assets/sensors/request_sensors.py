"""new_batch_request and score_the_others: every new or changed file in the request folder is scored, once."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg
import msgspec

from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError
from serving_assets.assets.model_version import registered_model_version
from serving_assets.records.decisions import adjacent_ranges
from serving_assets.records.history import (
    ASKED_VERSION,
    CLOCKS_DIFFER_S,
    failed_since,
    known_requests,
    partitions_of,
    run_request,
    runs_in_flight,
    scores_requests,
)
from serving_assets.records.observations import last_seen, refused_in_run, seen_event
from serving_assets.records.request_changes import Changes, Known, find_changes
from serving_assets.records.requests import NoRequestFolder, RequestFile, batch_requests, read_request_folder
from serving_assets.records.retries import RUNS_AT_ONCE, failed_attempts, together
from serving_assets.resources import Serving
from serving_assets.sensors.jobs import REQUESTS_PER_RUN, score_batch

INTERVAL_S = 5
# Dagster's own tag (1.13): of the runs in its queue, those of higher priority begin first; 0 where there is none.
# Requests between refused ones need a run for each gap, which may be hundreds: what comes in meanwhile goes first.
PRIORITY, AFTER_NEW_ONES = "dagster/priority", "-1"
NOTHING_NEW = "No new or changed file in the request folder."


class _Cursor(msgspec.Struct, frozen=True):
    """What new_batch_request remembers between ticks; without it, one tick looks at everything once more."""

    listing: str = ""
    """Digest of the folder's listing once nothing in it waits any more: while it lasts, there is nothing to do."""
    told: str = ""
    """Digest of the names that were said not to be taken: once, not at every tick."""
    looked_s: float = 0.0
    """When that was, in seconds since 1970: a run that failed since is something to do."""
    due_s: float | None = None
    """When there is something to do although nothing has changed: a request is taken again."""
    ahead: tuple[str, ...] = ()
    """How the files looked whose time of last change lay in the future."""


@dg.sensor(
    name="new_batch_request",
    job=score_batch,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_S,
    description="Adds a partition for each new file in the request folder and scores it; scores a file again when its "
    f"content changes. Up to {REQUESTS_PER_RUN} files share a run.",
)
def new_batch_request(
    context: dg.SensorEvaluationContext, serving: dg.ResourceParam[Serving]
) -> dg.SensorResult | dg.SkipReason:
    """One look at the request folder."""
    cursor = _read_cursor(context.cursor)
    changes = Changes()
    try:
        place = serving.settings.batch_requests
        folder = read_request_folder(place)
        listing, others = _digest(file.fingerprint for file in folder.requests), _digest(folder.others)
        if (cursor.listing, cursor.told) == (listing, others) and not _overdue(context.instance, cursor):
            return dg.SkipReason(NOTHING_NEW)
        now = time.time()
        partitions = known_requests(context.instance)
        known = _known(context.instance, partitions, folder.requests, cursor)
        changes = find_changes(place, folder.requests, known)
        if changes.files:
            serving.registry.resolve(serving.settings.model_name, serving.settings.model_alias)
    except NoRequestFolder as error:
        return dg.SkipReason(str(error))
    except (AliasNotSet, ModelNotRegistered) as error:
        return dg.SkipReason(f"{len(changes.files)} batch requests wait for a model version. {error}")
    except ServingError as error:
        raise error from None
    have_partitions = set(partitions)
    added = [file.key for file, _ in changes.files if file.key not in have_partitions]
    order = [*partitions, *added]
    ranges, repeated = _ranges(changes, known, order)
    runs = [
        run_request(
            first,
            last,
            run_key=f"{first}...{last}:{_content(changes, known, first, last, order)}",
            tags={PRIORITY: AFTER_NEW_ONES} if (first, last) in repeated else None,
        )
        for first, last in [*ranges, *repeated]
    ]
    not_taken = folder.not_taken if cursor.told != others else ""
    if not_taken:
        context.log.warning(not_taken)
    waiting = list(changes.waiting)
    if left := len(changes.files) - _length([*ranges, *repeated], order):
        waiting.append(f"{left} requests whose run failed wait for the runs of others")
    later = [f"{len(changes.again)} requests whose run failed are taken again later"] if changes.again else []
    after = _Cursor("" if waiting else listing, others, now, min(changes.again, default=None), changes.ahead)
    return dg.SensorResult(
        run_requests=runs,
        skip_reason=None if runs else "; ".join([*waiting, *later]) or not_taken or NOTHING_NEW,
        dynamic_partitions_requests=[batch_requests.build_add_request(added)] if added else [],
        asset_events=[seen_event(file, sha256, known.seen.get(file.key)) for file, sha256 in changes.touched],
        cursor=msgspec.json.encode(after).decode(),
    )


@dg.run_failure_sensor(
    name="score_the_others",
    request_job=score_batch,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_S,
    description="When a run over several requests failed because some of them can't be scored, scores the others.",
)
def score_the_others(context: dg.RunFailureSensorContext) -> dg.SensorResult | dg.SkipReason:
    """One failed run. It names the requests that it refused; without one, the run failed for another reason."""
    run = context.dagster_run
    known = known_requests(context.instance)
    keys = list(partitions_of(run.tags, known)) if scores_requests(run) else []
    refused = refused_in_run(context.instance, run.run_id) & set(keys)
    others = [key for key in keys if key not in refused]
    if not refused or not others:
        return dg.SkipReason("No request of this run can be scored without the others.")
    tags = {"serving/others_of": run.run_id, PRIORITY: AFTER_NEW_ONES}
    return dg.SensorResult(
        run_requests=[
            run_request(first, last, f"{run.run_id}:{first}", run_config=_score_config(run), tags=tags)
            for first, last in adjacent_ranges(others, known, REQUESTS_PER_RUN)
        ]
    )


def _overdue(instance: dg.DagsterInstance, cursor: _Cursor) -> bool:
    """Whether there is something to do although the folder is as it was."""
    if cursor.due_s is not None and time.time() >= cursor.due_s:
        return True
    return failed_since(instance, cursor.looked_s - CLOCKS_DIFFER_S)


def _known(
    instance: dg.DagsterInstance, partitions: Sequence[str], files: Sequence[RequestFile], cursor: _Cursor
) -> Known:
    seen = last_seen(instance)
    attempts = failed_attempts(instance, partitions, [file.key for file in files], seen)
    return Known(seen, attempts, frozenset(runs_in_flight(instance, partitions)), cursor.ahead)


Ranges = list[tuple[str, str]]


def _ranges(changes: Changes, known: Known, order: Sequence[str]) -> tuple[Ranges, Ranges]:
    """The runs to ask for, each from one request to another: those for the first time, and repeated ones."""
    by_failures: dict[int, list[str]] = {}
    for file, _ in changes.files:
        by_failures.setdefault(len(known.failures(file)), []).append(file.key)
    ranges = adjacent_ranges(by_failures.pop(0, []), order, REQUESTS_PER_RUN)
    if known.busy & known.attempts.keys():
        return ranges, []  # one after the other: they may fail again
    repeated = [
        each for failures, keys in by_failures.items() for each in adjacent_ranges(keys, order, together(failures))
    ]
    return ranges, repeated[:RUNS_AT_ONCE]


def _length(ranges: Ranges, order: Sequence[str]) -> int:
    return sum(order.index(last) - order.index(first) + 1 for first, last in ranges)


def _read_cursor(text: str | None) -> _Cursor:
    try:
        return msgspec.json.decode(text or "{}", type=_Cursor)
    except msgspec.MsgspecError:
        return _Cursor()


def _digest(texts: Iterable[str]) -> str:
    # A name on a disk may be no UTF-8.
    return hashlib.sha256("\n".join(texts).encode(errors="surrogateescape")).hexdigest()


def _content(changes: Changes, known: Known, first: str, last: str, order: Sequence[str]) -> str:
    """Digest of the content to score. Content that returns after another one, or after a failed run, gets a new one."""
    inside = set(order[order.index(first) : order.index(last) + 1])
    digest = hashlib.sha256()
    for file, sha256 in changes.files:
        if file.key in inside:
            before = known.seen[file.key].event if file.key in known.seen else 0
            failed = max(known.attempts[file.key].ends, default="") if file.key in known.attempts else ""
            digest.update(f"{file.key} {sha256} {before} {failed}\n".encode())
    return digest.hexdigest()[:32]


def _score_config(run: dg.DagsterRun) -> dict[str, object]:
    """The failed run's own pin, if a person gave it one; of a larger job only what score_batch has, too."""
    if ASKED_VERSION in run.tags:
        return {}  # the alias named it then: what it names when the others are scored is right
    operations: Any = run.run_config.get("ops", {})
    return {
        "ops": {name: config for name, config in operations.items() if name == registered_model_version.key.path[-1]}
    }
