"""Whether a sensor's tick asks for a run: decided from facts, without Dagster, files or a registry.

Who does what: `new_batch_request` asks for the scoring of a new or changed request. `new_model_version` asks for
another one when the alias names another version. When a run fails for some of its requests, `score_the_others` asks for
the rest. While a run is scoring a request, nobody asks for a second: it could finish first, and the older version's
output would stay.
"""

from collections.abc import Collection, Sequence

import msgspec


class Registered(msgspec.Struct, frozen=True):
    """One registration of a model version: a model that was deleted and registered anew counts from 1 again."""

    data_version: str
    """`name:version`."""
    created_ms: int = 0
    """When it was registered, in milliseconds since 1970; 0 if that is not known."""

    def __str__(self) -> str:
        return self.data_version


class VersionCursor(msgspec.Struct, frozen=True):
    """What new_model_version remembers between ticks."""

    handled: Registered | None = None
    """What the alias named when the last decision was made."""
    sequence: int = 0
    """Number of runs asked for; part of each run's key, so that a rollback is not taken for a repetition."""
    left: str | None = None
    """Request that had no output at the last tick: its first scoring was left to the other sensors."""


class RequestState(msgspec.Struct, frozen=True):
    """What the Dagster instance knows of one batch request."""

    key: str
    scored_with: Registered | None = None
    """The model version that made its latest batch_output; None if there is none."""
    unsure: bool = False
    """Whether a run that did not succeed may have replaced that output since."""
    run_in_flight: str | None = None
    """A run that is scoring it, or is queued to."""
    asked_before: bool = False
    """Whether there ever was a run for it."""


class VersionDecision(msgspec.Struct, frozen=True):
    """The outcome of one tick of new_model_version."""

    cursor: VersionCursor
    score: tuple[str, ...]
    """Keys of the requests to score."""
    reason: str


def decide_rescoring(cursor: VersionCursor, version: Registered, requests: Sequence[RequestState]) -> VersionDecision:
    """What to do now that the alias names `version`.

    Args:
        cursor: what the last tick left.
        version: what the alias names.
        requests: those that a new version scores again: the newest one last. None of them, if there is no request.
    """
    if version == cursor.handled:
        return VersionDecision(cursor, (), f"The alias still names {version}.")
    if not requests:
        return VersionDecision(cursor, (), f"No batch request to score with {version} yet.")
    busy = next((each for each in requests if each.run_in_flight), None)
    if busy:
        # Its version may be this one: the next tick sees what it made.
        return VersionDecision(cursor, (), f"Run {busy.run_in_flight} is scoring {busy.key}: waiting for it.")
    newest = requests[-1]
    if newest.scored_with is None and cursor.left != newest.key:
        left = VersionCursor(cursor.handled, cursor.sequence, left=newest.key)
        return VersionDecision(left, (), f"{newest.key} was never scored: left to the other sensors for one tick.")
    # An older request that was never scored has a reason for that, which a new version does not change.
    outdated = [
        each
        for each in requests
        if (each.scored_with != version or each.unsure) and (each.scored_with or each is newest)
    ]
    if not outdated:
        done = VersionCursor(handled=version, sequence=cursor.sequence)
        return VersionDecision(done, (), f"{newest.key} is already scored with {version}.")
    asked = VersionCursor(handled=version, sequence=cursor.sequence + 1)
    keys = tuple(each.key for each in outdated)
    return VersionDecision(asked, keys, f"{len(keys)} requests are scored with {version}.")


def adjacent_ranges(keys: Collection[str], order: Sequence[str], most: int) -> list[tuple[str, str]]:
    """`keys` as the fewest ranges (first, last) of at most `most` neighbours in `order`: one run can score each."""
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
