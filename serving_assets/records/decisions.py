"""Decide whether a tick of new_model_version requests a run; pure functions.

`new_batch_request` requests runs over new and changed requests. `new_model_version` requests them when the alias names
another version. If a run fails for some of its requests, `score_the_others` requests runs over the others. No sensor
requests a second run over a request that a run is scoring: if the second run finished first, the first one would
replace its output with that of the older version.
"""

from collections.abc import Collection, Sequence

import msgspec


class Registered(msgspec.Struct, frozen=True):
    """One registration of a model version. A model that is deleted and re-registered restarts at version 1."""

    data_version: str
    """`name:version`."""
    created_ms: int = 0
    """Time of registration in milliseconds since 1970; 0 if unknown."""

    def __str__(self) -> str:
        return self.data_version


class VersionCursor(msgspec.Struct, frozen=True):
    """State of new_model_version between ticks."""

    handled: Registered | None = None
    """The version that the alias named at the last decision."""
    sequence: int = 0
    """Number of times that runs were requested; part of each run key, so that a rollback is not deduplicated."""
    left: str | None = None
    """Request without an output at the last tick, whose first scoring was left to the other sensors."""


class RequestState(msgspec.Struct, frozen=True):
    """State of one batch request in the Dagster instance."""

    key: str
    scored_with: Registered | None = None
    """The model version that made its latest batch_output; None if there is none."""
    may_be_replaced: bool = False
    """Whether a later, unsuccessful run may have replaced that output."""
    run_in_flight: str | None = None
    """Id of a run over it that is running or queued."""
    has_run: bool = False
    """Whether any run over it was ever launched."""


class VersionDecision(msgspec.Struct, frozen=True):
    """The outcome of one tick of new_model_version."""

    cursor: VersionCursor
    score: tuple[str, ...]
    """Keys of the requests to score."""
    reason: str


def decide_rescoring(cursor: VersionCursor, version: Registered, requests: Sequence[RequestState]) -> VersionDecision:
    """Decide which requests to score if the alias names `version`.

    Args:
        cursor: the cursor of the last tick.
        version: the version that the alias names.
        requests: the requests that a new version scores again, the newest one last.
    """
    if version == cursor.handled:
        return VersionDecision(cursor, (), f"The alias still names {version}.")
    if not requests:
        return VersionDecision(cursor, (), f"No batch request to score with {version} yet.")
    busy = next((each for each in requests if each.run_in_flight), None)
    if busy:
        # It may be scoring with this version; the next tick sees its output.
        return VersionDecision(cursor, (), f"Run {busy.run_in_flight} is scoring {busy.key}: waiting for it.")
    newest = requests[-1]
    if newest.scored_with is None and cursor.left != newest.key:
        left = VersionCursor(cursor.handled, cursor.sequence, left=newest.key)
        return VersionDecision(left, (), f"{newest.key} was never scored: left to the other sensors for one tick.")
    # An older request without an output was refused or failed; a new version does not score it.
    outdated = [
        each
        for each in requests
        if (each.scored_with != version or each.may_be_replaced) and (each.scored_with or each is newest)
    ]
    if not outdated:
        done = VersionCursor(handled=version, sequence=cursor.sequence)
        return VersionDecision(done, (), f"{newest.key} is already scored with {version}.")
    requested = VersionCursor(handled=version, sequence=cursor.sequence + 1)
    keys = tuple(each.key for each in outdated)
    return VersionDecision(requested, keys, f"{len(keys)} requests are scored with {version}.")


def adjacent_ranges(keys: Collection[str], order: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Return the minimal list of ranges (first, last) of at most `most` adjacent keys in `order` that cover `keys`."""
    wanted = set(keys)
    ranges: list[tuple[str, str]] = []
    length = 0
    for key in order:
        if key not in wanted:
            length = 0
        elif 0 < length < most:
            ranges[-1] = (ranges[-1][0], key)
            length += 1
        else:
            ranges.append((key, key))
            length = 1
    return ranges
