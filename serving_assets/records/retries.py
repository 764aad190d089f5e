"""Requests whose run failed or died before it could say what became of them: they are taken again, ever more rarely."""

from collections.abc import Collection, Mapping, Sequence

import dagster as dg
import msgspec

from serving_assets.records.history import failed_runs
from serving_assets.records.observations import RequestResult, Seen, outcomes, unsettled

# How long after the first, second, … failed run in a row a request is taken again; from then on at the last interval.
AGAIN_AFTER_S = (60, 300, 1800, 3600)
# How many requests share a run after that many failed ones. A long outage is no request's fault, but one request may be
# what kills each run (its join takes all memory, say): in the end it stands alone, and all others are scored.
TOGETHER = (250, 250, 250, 32, 4, 1)
# Of such runs, so many are asked for at once, and the next ones when none of them is left.
RUNS_AT_ONCE = 8
NEVER = RequestResult(0, 0.0, "")


class Attempts(msgspec.Struct, frozen=True):
    """What is known of the failed runs over one request."""

    ends: tuple[float, ...]
    """When they ended, in seconds since 1970: those since the request was scored or refused last."""
    open: bool
    """Whether the content that was read last was neither scored nor refused."""

    def of_content(self, modified_s: float, now: float) -> tuple[float, ...]:
        """The failed runs since the file was written; all of them, where its clock is ahead of ours."""
        return tuple(end for end in self.ends if end > modified_s or modified_s > now)


def failed_attempts(
    instance: dg.DagsterInstance, known: Sequence[str], keys: Collection[str], seen: Mapping[str, Seen]
) -> dict[str, Attempts]:
    """The attempts at those of these requests over which a run failed or died.

    Args:
        instance: Dagster's.
        known: all partition keys, in the order in which ranges run.
        keys: requests whose files are there.
        seen: what was read of their files last.
    """
    wanted = set(keys)
    waiting = unsettled(instance, {key: each for key, each in seen.items() if key in wanted})
    failed = {key: ends for key, ends in failed_runs(instance, known, waiting).items() if key in wanted}
    if not failed:
        return {}
    became = outcomes(instance, failed)
    found = {}
    for key, ends in failed.items():
        last, before = became.get(key, NEVER), seen.get(key)
        found[key] = Attempts(
            # A run that refuses a request fails for it.
            tuple(end for run, end in ends.items() if end > last.moment_s and run != last.run),
            open=before is not None and last.event < before.since,
        )
    return found


def again_at(ends: Sequence[float]) -> float:
    """When a request is taken again whose runs ended so, in seconds since 1970; 0 if there was none."""
    return max(ends) + AGAIN_AFTER_S[min(len(ends), len(AGAIN_AFTER_S)) - 1] if ends else 0.0


def together(failures: int) -> int:
    """How many requests may share a run after so many failed ones."""
    return TOGETHER[min(failures, len(TOGETHER) - 1)]
