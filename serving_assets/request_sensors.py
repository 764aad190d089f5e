"""new_batch_request and score_the_others: every new or changed file in the request folder is scored, once."""

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg
import msgspec

from scoring.alias_watch import look
from scoring.errors import AliasNotSet, ModelNotRegistered, ServingError, StorageError
from scoring.storage import Location
from serving_assets.decisions import adjacent_ranges
from serving_assets.history import known_requests, partitions_of, run_request, runs_in_flight, scores_requests
from serving_assets.jobs import REQUESTS_A_RUN, score_batch
from serving_assets.memory import Seen, last_seen, refused_in_run, seen_event
from serving_assets.model_version import registered_model_version
from serving_assets.requests import NoRequestFolder, RequestFile, batch_requests, look_into, read_hash
from serving_assets.resources import Serving

INTERVAL_S = 5
# A file that was written to a moment ago may not be complete. Also longer than a clock's tick in any store (a second in
# S3): a file that changes after it was looked at shows it.
SETTLED_AFTER_S = 3
# A tick ends after 60 s. What is not read by then is read by the next one.
READING_S = 20
NOTHING_NEW = "No new or changed file in the request folder."


class _Cursor(msgspec.Struct, frozen=True):
    """What new_batch_request remembers between ticks; without it, one tick looks at everything once more."""

    listing: str = ""
    """Digest of the folder's listing once nothing in it waits any more: while it lasts, there is nothing to do."""
    told: str = ""
    """Digest of the names that were said not to be taken: once, not at every tick."""


class _Changed(msgspec.Struct, frozen=True):
    """What one look at the folder has found beside what is known."""

    files: tuple[tuple[RequestFile, str], ...] = ()
    """New files and those with other content than before, each with its hash."""
    touched: tuple[tuple[RequestFile, str], ...] = ()
    """Files that look changed, and are not."""
    waiting: tuple[str, ...] = ()
    """Why some files are not looked at yet."""


@dg.sensor(
    name="new_batch_request",
    job=score_batch,
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=INTERVAL_S,
    description="Adds a partition for each new file in the request folder and scores it; scores a file again when its "
    f"content changes. Up to {REQUESTS_A_RUN} files share a run.",
)
def new_batch_request(
    context: dg.SensorEvaluationContext, serving: dg.ResourceParam[Serving]
) -> dg.SensorResult | dg.SkipReason:
    """One look at the request folder."""
    cursor = _read_cursor(context.cursor)
    changed = _Changed()
    try:
        place = serving.settings.batch_requests
        folder = look_into(place)
        listing, others = _digest(file.look for file in folder.requests), _digest(folder.others)
        if cursor == _Cursor(listing, others):
            return dg.SkipReason(NOTHING_NEW)
        known = known_requests(context.instance)
        seen = last_seen(context.instance)
        changed = _changed(place, folder.requests, seen, set(runs_in_flight(context.instance, known)))
        if changed.files:
            look(serving.registry, serving.settings, os.environ)
    except NoRequestFolder as error:
        return dg.SkipReason(str(error))
    except (AliasNotSet, ModelNotRegistered) as error:
        return dg.SkipReason(f"{len(changed.files)} batch requests wait for a model version. {error}")
    except ServingError as error:
        raise error from None
    keys = [file.key for file, _ in changed.files]
    partitions = set(known)
    added = [key for key in keys if key not in partitions]
    runs = [
        run_request(first, last, run_key=f"{first}...{last}:{_content(changed, seen, first, last, [*known, *added])}")
        for first, last in adjacent_ranges(keys, [*known, *added], REQUESTS_A_RUN)
    ]
    not_taken = folder.not_taken if cursor.told != others else ""
    if not_taken:
        context.log.warning(not_taken)
    return dg.SensorResult(
        run_requests=runs,
        skip_reason=None if runs else "; ".join(changed.waiting) or not_taken or NOTHING_NEW,
        dynamic_partitions_requests=[batch_requests.build_add_request(added)] if added else [],
        asset_events=[seen_event(file, sha256) for file, sha256 in changed.touched],
        cursor=msgspec.json.encode(_Cursor("" if changed.waiting else listing, others)).decode(),
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
    tags = {"serving/others_of": run.run_id}
    return dg.SensorResult(
        run_requests=[
            run_request(first, last, f"{run.run_id}:{first}", run_config=_score_config(run), tags=tags)
            for first, last in adjacent_ranges(others, known, REQUESTS_A_RUN)
        ]
    )


def _changed(folder: Location, files: Sequence[RequestFile], seen: dict[str, Seen], busy: set[str]) -> _Changed:
    until = time.monotonic() + READING_S
    settled_ns = (time.time() - SETTLED_AFTER_S) * 1e9
    found: dict[str, tuple[RequestFile, str]] = {}
    touched, unsettled, in_flight, unread = [], 0, 0, 0
    broken: list[StorageError] = []
    for file in files:
        before = seen.get(file.key)
        if before is not None and before.look == file.look:
            continue
        if file.modified_ns > settled_ns:
            unsettled += 1
        elif file.key in busy:
            in_flight += 1
        elif time.monotonic() > until:
            unread += 1
        else:
            try:
                sha256 = read_hash(folder / file.name)
            except FileNotFoundError:
                continue
            except StorageError as error:
                broken.append(error)
                continue
            if before is not None and before.sha256 == sha256:
                touched.append((file, sha256))
            else:
                found[file.key] = (file, sha256)  # two files of one key fail the run, which tells
    if broken and not found and not touched:
        raise broken[0]  # an outage, as far as one can see: the tick fails
    counts = {
        "are still being written": unsettled,
        "are being scored, and are looked at again after that": in_flight,
        "are looked at by the next tick": unread,
        f"can't be read ({broken[0] if broken else ''})": len(broken),
    }
    waiting = tuple(f"{count} new or changed files {what}" for what, count in counts.items() if count)
    return _Changed(tuple(found.values()), tuple(touched), waiting)


def _read_cursor(text: str | None) -> _Cursor:
    try:
        return msgspec.json.decode(text or "{}", type=_Cursor)
    except msgspec.MsgspecError:
        return _Cursor()


def _digest(texts: Iterable[str]) -> str:
    # A name on a disk may be no UTF-8.
    return hashlib.sha256("\n".join(texts).encode(errors="surrogateescape")).hexdigest()


def _content(changed: _Changed, seen: dict[str, Seen], first: str, last: str, order: Sequence[str]) -> str:
    """Names what is scored: content that comes back after another one is another thing to score."""
    inside = set(order[order.index(first) : order.index(last) + 1])
    digest = hashlib.sha256()
    for file, sha256 in changed.files:
        if file.key in inside:
            before = seen[file.key].event if file.key in seen else 0
            digest.update(f"{file.key} {sha256} {before}\n".encode())
    return digest.hexdigest()[:32]


def _score_config(run: dg.DagsterRun) -> dict[str, object]:
    """The failed run's own pin, if it has one; of a larger job only what score_batch has, too."""
    operations: Any = run.run_config.get("ops", {})
    return {
        "ops": {name: config for name, config in operations.items() if name == registered_model_version.key.path[-1]}
    }
