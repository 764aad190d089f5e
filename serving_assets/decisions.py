"""Whether a sensor's tick asks for a run: decided from facts, without Dagster, files or a registry.

Who does what: `new_batch_request` asks for the first scoring of a request. `new_model_version` asks for another one
when the alias names another version. While a run is scoring a request, nobody asks for a second: it could finish first,
and the older version's output would stay.
"""

from collections.abc import Sequence

import msgspec


class VersionCursor(msgspec.Struct, frozen=True):
    """What new_model_version remembers between ticks."""

    handled: str | None = None
    """Data version (`name:version`) that the alias named when the last decision was made."""
    sequence: int = 0
    """Number of runs asked for; part of each run's key, so that a rollback is not taken for a repetition."""
    left: str | None = None
    """Request that had never been asked for at the last tick: its first scoring was left to new_batch_request."""


class RequestState(msgspec.Struct, frozen=True):
    """What the Dagster instance knows of one batch request."""

    key: str
    scored_with: str | None = None
    """Data version of the model that made its latest batch_output; None if there is none."""
    run_in_flight: str | None = None
    """A run that is scoring it, or is queued to."""
    asked_before: bool = False
    """Whether there ever was a run for it."""


class VersionDecision(msgspec.Struct, frozen=True):
    """The outcome of one tick of new_model_version."""

    cursor: VersionCursor
    score: str | None
    """Key of the request to score, or None."""
    reason: str


def decide_rescoring(cursor: VersionCursor, version: str, newest: RequestState | None) -> VersionDecision:
    """What to do now that the alias names `version` (a data version, `name:version`).

    Args:
        cursor: what the last tick left.
        version: what the alias names.
        newest: the newest batch request that Dagster knows of; None if there is none.
    """
    if version == cursor.handled:
        return VersionDecision(cursor, None, f"The alias still names {version}.")
    if newest is None:
        return VersionDecision(cursor, None, f"No batch request to score with {version} yet.")
    done = VersionCursor(handled=version, sequence=cursor.sequence)
    if newest.run_in_flight:
        # Its version may be this one: the next tick sees what it made.
        return VersionDecision(cursor, None, f"Run {newest.run_in_flight} is scoring {newest.key}: waiting for it.")
    if newest.scored_with == version:
        return VersionDecision(done, None, f"{newest.key} is already scored with {version}.")
    if newest.scored_with is None and not newest.asked_before and cursor.left != newest.key:
        left = VersionCursor(cursor.handled, cursor.sequence, left=newest.key)
        return VersionDecision(left, None, f"{newest.key} was never scored: left to new_batch_request for one tick.")
    asked = VersionCursor(handled=version, sequence=cursor.sequence + 1)
    return VersionDecision(asked, newest.key, f"{newest.key} is scored with {version}.")


def adjacent_ranges(keys: Sequence[str], order: Sequence[str]) -> list[tuple[str, str]]:
    """`keys` as the fewest ranges (first, last) of neighbours in `order`: each can be scored by one run."""
    wanted = set(keys)
    ranges: list[tuple[str, str]] = []
    previous = None
    for key in order:
        if key in wanted:
            ranges.append((ranges.pop()[0], key) if previous in wanted and ranges else (key, key))
        previous = key
    return ranges
