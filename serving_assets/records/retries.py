"""Requests whose run failed or died before it scored or refused them: they are retried, less and less often."""

from collections.abc import Collection, Mapping

import dagster as dg
import msgspec

from serving_assets.records.history import with_end_times
from serving_assets.records.observations import BATCH_OUTPUT, Seen, in_queries, last_refusals

# Seconds until a request is retried, after its first, second, … failed run in a row. The last one is repeated.
RETRY_AFTER_S = (60, 300, 1800, 3600)
# How many requests share a run after that many failed ones. An outage is not a request's fault, but a request may be
# what kills each run (its join takes all memory, for example): in the end it is alone, and all others are scored.
REQUESTS_PER_RETRY = (250, 250, 250, 32, 4, 1)
# The most retries that are requested at a time. The next ones are requested when all of them have ended.
RETRIES_AT_ONCE = 8
# Tag of a retry: how many runs over its requests failed in a row before it.
FAILURES_TAG = "serving/failures"


class FailedAttempt(msgspec.Struct, frozen=True):
    """The last run over a request, which failed without refusing the request."""

    failures: int
    """Number of failed runs in a row, this one included."""
    ended_s: float
    """When it ended, in seconds since 1970."""
    open: bool
    """Whether the content that was read last was neither scored nor refused."""

    @property
    def retry_s(self) -> float:
        """When the request is retried, in seconds since 1970."""
        return self.ended_s + RETRY_AFTER_S[min(self.failures, len(RETRY_AFTER_S)) - 1]


def failed_attempts(
    instance: dg.DagsterInstance, keys: Collection[str], seen: Mapping[str, Seen]
) -> dict[str, FailedAttempt]:
    """Return the last attempts at those of these requests whose last run failed.

    Args:
        instance: Dagster's.
        keys: requests that have a file.
        seen: what was read of their files last.
    """
    # What Dagster's own status of a partition is made from (1.13): the last run that planned each partition.
    latest = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
        BATCH_OUTPUT
    )
    run_of = {key: latest[key][0] for key in keys if key in latest}
    failed: dict[str, tuple[dg.DagsterRun, float]] = {}
    for ids in in_queries(sorted(set(run_of.values()))):
        filters = dg.RunsFilter(run_ids=ids, statuses=[dg.DagsterRunStatus.FAILURE])
        failed |= {run.run_id: (run, end_s) for run, end_s in with_end_times(instance.get_run_records(filters))}
    run_of = {key: run_id for key, run_id in run_of.items() if run_id in failed}
    if not run_of:
        return {}
    refusals = last_refusals(instance, run_of)
    outputs = instance.get_latest_storage_id_by_partition(BATCH_OUTPUT, dg.DagsterEventType.ASSET_MATERIALIZATION)
    found = {}
    for key, run_id in run_of.items():
        refusal = refusals.get(key)
        if refusal is not None and refusal.run_id == run_id:
            continue
        settled = max(outputs.get(key, 0), refusal.storage_id if refusal is not None else 0)
        run, end_s = failed[run_id]
        is_open = key in seen and settled < seen[key].since
        found[key] = FailedAttempt(int(run.tags.get(FAILURES_TAG, "0")) + 1, end_s, is_open)
    return found


def requests_per_retry(failures: int) -> int:
    """How many requests may share a run after that many failed ones."""
    return REQUESTS_PER_RETRY[min(failures, len(REQUESTS_PER_RETRY) - 1)]
