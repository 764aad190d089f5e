"""When requests are retried whose run failed before it scored or refused them, and how many of them share a run."""

from collections.abc import Collection, Mapping

import dagster as dg
import msgspec

from serving_assets.records.history import with_end_times
from serving_assets.records.observations import BATCH_OUTPUT, Seen, in_queries, last_refusals

# Seconds until the retry after the first, second, … consecutive failed run of a request. The last value is repeated.
RETRY_AFTER_S = (60, 300, 1800, 3600)
# Requests per run after that many failed ones. After an outage, no request is at fault. But if a request kills each run
# (because its join exhausts the memory, for example), it ends up in a run of its own, and all others are scored.
REQUESTS_PER_RETRY = (250, 250, 250, 32, 4, 1)
# Maximum number of concurrent retries. The next ones are requested when all of them have ended.
RETRIES_AT_ONCE = 8
# Tag of a retry: the number of consecutive failed runs over its requests before it.
FAILURES_TAG = "serving/failures"


class FailedAttempt(msgspec.Struct, frozen=True):
    """The last run over a request, if it failed without refusing the request."""

    failures: int
    """Number of consecutive failed runs, including this one."""
    ended_s: float
    """End of the run in seconds since 1970."""
    open: bool
    """Whether the last read content was neither scored (or written to the scores table) nor refused."""

    @property
    def retry_s(self) -> float:
        """Return the time of the next retry in seconds since 1970."""
        return self.ended_s + RETRY_AFTER_S[min(self.failures, len(RETRY_AFTER_S)) - 1]


def failed_attempts(
    instance: dg.DagsterInstance, keys: Collection[str], seen: Mapping[str, Seen], asset: dg.AssetKey = BATCH_OUTPUT
) -> dict[str, FailedAttempt]:
    """Return the last run of each of these requests whose last run failed to materialize the asset.

    Args:
        instance: the Dagster instance.
        keys: requests that have a file.
        seen: the last read state of their files.
        asset: BATCH_OUTPUT, or SCORES_TABLE below it.
    """
    # The last run that planned each partition; Dagster 1.13 derives a partition's status from it.
    latest = instance.event_log_storage.get_latest_asset_partition_materialization_attempts_without_materializations(
        asset
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
    outputs = instance.get_latest_storage_id_by_partition(asset, dg.DagsterEventType.ASSET_MATERIALIZATION)
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
    """Return how many requests may share a run after that many failed ones."""
    return REQUESTS_PER_RETRY[min(failures, len(REQUESTS_PER_RETRY) - 1)]
