"""Request runs over new and changed files in the request folder: new_batch_request and score_the_others."""

import hashlib
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import msgspec

from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError, listed
from serving_assets.assets.model_version import PIN_TAG, registered_model_version
from serving_assets.records.decisions import adjacent_ranges
from serving_assets.records.history import (
    CLOCKS_DIFFER_S,
    VERSION_TAG,
    failed_since,
    known_requests,
    partitions_of,
    requests_in_flight,
    run_request,
    scores_requests,
    unfinished_runs,
)
from serving_assets.records.observations import SCORES_TABLE, ignored_event, last_seen, refused_in_run, seen_event
from serving_assets.records.request_changes import Changes, Known, find_changes
from serving_assets.records.requests import NoRequestFolder, batch_requests, read_request_folder
from serving_assets.records.retries import FAILURES_TAG, RETRIES_AT_ONCE, failed_attempts, requests_per_retry
from serving_assets.resources import Serving
from serving_assets.sensors.jobs import REQUESTS_PER_RUN, score_batch

INTERVAL_S = 5
# Dagster's tag (1.13): the queue starts runs of higher priority first; the default is 0. The requests between refused
# ones need a run per gap. There may be hundreds of these runs, so new requests go first.
PRIORITY, AFTER_NEW_ONES = "dagster/priority", "-1"
NOTHING_NEW = "No new or changed file in the request folder."


class _Cursor(msgspec.Struct, frozen=True):
    """State of new_batch_request between ticks. If it is lost, one tick compares everything again."""

    listing: str = ""
    """Digest of the folder's listing if no file waits to be read; empty otherwise."""
    ignored: str = ""
    """Digest of the names of reported ignored files, so that they are reported once."""
    checked_s: float = 0.0
    """Time of the last comparison in seconds since 1970; a run that failed since then requires another one."""
    due_s: float | None = None
    """Time of the next retry in seconds since 1970."""
    retries: str = ""
    """Description of the retries; empty if there are none."""
    ahead: tuple[str, ...] = ()
    """Fingerprints of the files whose modification time was in the future."""


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
    """Read the request folder, and request runs over new and changed files."""
    cursor = _read_cursor(context.cursor)
    changes = Changes()
    try:
        place = serving.settings.batch_requests
        folder = read_request_folder(place)
        listing, ignored = _digest(file.fingerprint for file in folder.requests), _digest(folder.others)
        if (cursor.listing, cursor.ignored) == (listing, ignored) and not _overdue(context.instance, cursor):
            return dg.SkipReason(cursor.retries or NOTHING_NEW)
        now = time.time()
        partitions = known_requests(context.instance)
        seen, unfinished = last_seen(context.instance), unfinished_runs(context.instance)
        keys = [file.key for file in folder.requests]
        attempts = failed_attempts(context.instance, keys, seen)
        if serving.settings.scores_table is not None:  # a run may fail after it has scored the request
            below = failed_attempts(context.instance, keys, seen, SCORES_TABLE)
            attempts |= {key: tried for key, tried in below.items() if tried.open}
        known = Known(seen, attempts, frozenset(requests_in_flight(unfinished, partitions)), cursor.ahead)
        changes = find_changes(place, folder.requests, known)
        if changes.files:
            serving.registry.resolve(serving.settings.model_name, serving.settings.model_alias)
    except NoRequestFolder as error:
        return dg.SkipReason(str(error))
    except (AliasNotSet, ModelNotRegistered) as error:
        keys = [file.key for file, _ in changes.files]
        return dg.SkipReason(f"{len(keys)} batch requests wait for a model version ({listed(keys)}). {error}")
    except ServingError as error:
        raise error from None
    have_partitions = set(partitions)
    added = [file.key for file, _ in changes.files if file.key not in have_partitions]
    order = [*partitions, *added]
    retrying = any(FAILURES_TAG in run.tags for run in unfinished)
    runs, left = _run_requests(changes, known, order, RETRIES_AT_ONCE if not retrying else 0)
    news = folder.ignored if cursor.ignored != ignored else ""
    if news:
        context.log.warning(news)
    waiting = list(changes.waiting)
    if left:
        waiting.append(f"{len(left)} requests whose run failed wait for the retries of others ({listed(left)})")
    retries = _retries(changes)
    due_s = min((when_s for when_s, _ in changes.retries), default=None)
    after = _Cursor("" if waiting else listing, ignored, now, due_s, retries, changes.ahead)
    events = [seen_event(file, sha256, known.seen.get(file.key)) for file, sha256 in changes.touched]
    return dg.SensorResult(
        run_requests=runs,
        skip_reason=None if runs else "; ".join(filter(None, [*waiting, retries])) or news or NOTHING_NEW,
        dynamic_partitions_requests=[batch_requests.build_add_request(added)] if added else [],
        asset_events=[*events, *([ignored_event(folder)] if news else [])],
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
    """Request runs over the other requests of a failed run that refused some of its requests."""
    run = context.dagster_run
    known = known_requests(context.instance)
    keys = list(partitions_of(run.tags, known)) if scores_requests(run) else []
    refused = refused_in_run(context.instance, run.run_id) & set(keys)
    others = [key for key in keys if key not in refused]
    if not refused or not others:
        return dg.SkipReason("This run has no other request left to score.")
    tags = {"serving/others_of": run.run_id, PRIORITY: AFTER_NEW_ONES}
    tags |= {name: pin for name, pin in run.tags.items() if name == PIN_TAG}
    return dg.SensorResult(
        run_requests=[
            run_request(first, last, f"{run.run_id}:{first}", run_config=_score_config(run), tags=tags)
            for first, last in adjacent_ranges(others, known, REQUESTS_PER_RUN)
        ]
    )


def _overdue(instance: dg.DagsterInstance, cursor: _Cursor) -> bool:
    """Return whether a retry is due or a run has failed, although the folder has not changed."""
    if cursor.due_s is not None and time.time() >= cursor.due_s:
        return True
    return failed_since(instance, cursor.checked_s - CLOCKS_DIFFER_S)


def _run_requests(
    changes: Changes, known: Known, order: Sequence[str], room: int
) -> tuple[list[dg.RunRequest], list[str]]:
    """Return runs over new content and up to `room` retries, and the requests whose retry must wait."""
    by_failures: dict[int, list[str]] = {}
    for file, _ in changes.files:
        by_failures.setdefault(known.failures(file), []).append(file.key)
    runs: list[dg.RunRequest] = []
    left: list[str] = []
    for failures, keys in sorted(by_failures.items()):
        ranges = adjacent_ranges(keys, order, requests_per_retry(failures))
        if failures:
            ranges, cut = ranges[:room], ranges[room:]
            room -= len(ranges)
            left += [key for first, last in cut for key in order[order.index(first) : order.index(last) + 1]]
        tags = {PRIORITY: AFTER_NEW_ONES, FAILURES_TAG: str(failures)} if failures else None
        for first, last in ranges:
            run_key = f"{first}...{last}:{_content(changes, known, first, last, order)}"
            runs.append(run_request(first, last, run_key, tags=tags))
    return runs, left


def _retries(changes: Changes) -> str:
    """Return which requests are retried, and the time of the first retry; empty if there are none."""
    if not changes.retries:
        return ""
    retries = sorted(changes.retries)
    first = datetime.fromtimestamp(retries[0][0], UTC).isoformat(" ", "seconds")
    names = listed([key for _, key in retries])
    return f"{len(retries)} requests whose run failed are retried, the first at {first} ({names})"


def _read_cursor(text: str | None) -> _Cursor:
    try:
        return msgspec.json.decode(text or "{}", type=_Cursor)
    except msgspec.MsgspecError:
        return _Cursor()


def _digest(texts: Iterable[str]) -> str:
    # File names may not be UTF-8.
    return hashlib.sha256("\n".join(texts).encode(errors="surrogateescape")).hexdigest()


def _content(changes: Changes, known: Known, first: str, last: str, order: Sequence[str]) -> str:
    """Return a digest of the content to score. It differs if a content returns later, or after a failed run."""
    inside = set(order[order.index(first) : order.index(last) + 1])
    digest = hashlib.sha256()
    for file, sha256 in changes.files:
        if file.key in inside:
            before = known.seen[file.key].event if file.key in known.seen else 0
            failed = known.attempts[file.key].ended_s if file.key in known.attempts else ""
            digest.update(f"{file.key} {sha256} {before} {failed}\n".encode())
    return digest.hexdigest()[:32]


def _score_config(run: dg.DagsterRun) -> dict[str, object]:
    """Return the failed run's configuration of the assets in score_batch: the version that a user pinned, if any."""
    if VERSION_TAG in run.tags:
        return {}  # new_model_version pinned the alias's version; the others use the alias's current version
    operations: Any = run.run_config.get("ops", {})
    return {
        "ops": {name: config for name, config in operations.items() if name == registered_model_version.key.path[-1]}
    }
