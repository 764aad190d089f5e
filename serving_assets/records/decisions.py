"""Decide whether a tick of new_model_version requests runs: from facts, without Dagster, files or a registry.

`new_batch_request` requests runs over new and changed requests, `new_model_version` when the alias names another
version, and `score_the_others` over the rest when a run fails for some of its requests. No sensor requests a second run
over a request while one is scoring it: the second could finish first, and the older version's output would stay.
"""

from collections.abc import Collection, Sequence

import msgspec


class Registered(msgspec.Struct, frozen=True):
    """One registration of a model version: after a model is deleted and registered again, versions start at 1."""

    data_version: str
    """`name:version`."""
    created_ms: int = 0
    """When it was registered, in milliseconds since 1970; 0 if unknown."""

    def __str__(self) -> str:
        return self.data_version


class VersionCursor(msgspec.Struct, frozen=True):
    """What new_model_version remembers between ticks."""

    handled: Registered | None = None
    """The version that the alias named at the last decision."""
    sequence: int = 0
    """Number of decisions to run; part of each run's key, so that a rollback does not count as a repetition."""
    left: str | None = None
    """Request without an output at the last tick: its first scoring was left to the other sensors."""


class RequestState(msgspec.Struct, frozen=True):
    """What the Dagster instance knows of one batch request."""

    key: str
    scored_with: Registered | None = None
    """The model version that made its latest batch_output; None if there is none."""
    unsure: bool = False
    """Whether a later run that did not succeed may have replaced that output."""
    run_in_flight: str | None = None
    """A run that is scoring it, or is queued to."""
    has_run: bool = False
    """Whether there has been a run over it."""


class VersionDecision(msgspec.Struct, frozen=True):
    """The outcome of one tick of new_model_version."""

    cursor: VersionCursor
    score: tuple[str, ...]
    """Keys of the requests to score."""
    reason: str


def decide_rescoring(cursor: VersionCursor, version: Registered, requests: Sequence[RequestState]) -> VersionDecision:
    """Decide what to do now that the alias names `version`.

    Args:
        cursor: the cursor of the last tick.
        version: the version that the alias names.
        requests: the requests that a new version scores again, the newest one last; empty if there is no request.
    """
    if version == cursor.handled:
        return VersionDecision(cursor, (), f"The alias still names {version}.")
    if not requests:
        return VersionDecision(cursor, (), f"No batch request to score with {version} yet.")
    busy = next((each for each in requests if each.run_in_flight), None)
    if busy:
        # It may score with this version: the next tick sees its output.
        return VersionDecision(cursor, (), f"Run {busy.run_in_flight} is scoring {busy.key}: waiting for it.")
    newest = requests[-1]
    if newest.scored_with is None and cursor.left != newest.key:
        left = VersionCursor(cursor.handled, cursor.sequence, left=newest.key)
        return VersionDecision(left, (), f"{newest.key} was never scored: left to the other sensors for one tick.")
    # An older request that was never scored was refused or failed, which a new version does not change.
    outdated = [
        each
        for each in requests
        if (each.scored_with != version or each.unsure) and (each.scored_with or each is newest)
    ]
    if not outdated:
        done = VersionCursor(handled=version, sequence=cursor.sequence)
        return VersionDecision(done, (), f"{newest.key} is already scored with {version}.")
    requested = VersionCursor(handled=version, sequence=cursor.sequence + 1)
    keys = tuple(each.key for each in outdated)
    return VersionDecision(requested, keys, f"{len(keys)} requests are scored with {version}.")


def adjacent_ranges(keys: Collection[str], order: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Return `keys` as the fewest ranges (first, last) of at most `most` neighbors in `order`: one per run."""
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
