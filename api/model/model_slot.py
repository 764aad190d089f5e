"""The slot that holds the model version that serves now."""

import time
from collections.abc import Callable

import msgspec

from api.errors import NoModel
from api.model.loading import Target
from api.model.request_schema import RequestSchema
from api.model.scorer import Scorer


class Served(msgspec.Struct, frozen=True):
    """The served version and everything that a request needs of it. Replaced atomically."""

    target: Target
    scorer: Scorer
    schema: RequestSchema


class Refusal(msgspec.Struct, frozen=True):
    """A version that should serve and can't, because it was refused or this machine can't try it."""

    target: Target
    reason: str
    """For the log."""
    public: str
    """For /ready."""
    attempts: int
    of_this_machine: bool
    """Whether this machine is at fault, so nothing is known about the version."""
    retry_at: float
    """Time of the next attempt on the slot's clock. An earlier one follows only another target."""


class ModelSlot:
    """Holds what serves now. Only the event loop changes it; the challenger's thread also reads it.

    Each request reads `served` once, so that it sees one version.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Make an empty slot with this clock, in seconds."""
        self.clock = clock
        self.served: Served | None = None
        self.refusal: Refusal | None = None
        self.polled_at: float | None = None
        """Time of the registries' last successful answer on the clock; None before the first."""
        self.poll_problem: str | None = None
        """Why the last poll failed; None if it did not."""
        self.swaps = 0
        """Number of swaps, to another version or to other feature definitions."""
        self.refusals = 0
        """Number of refused attempts to load a version."""

    def current(self) -> Served:
        """Return what serves now.

        Raises:
            NoModel: no version is loaded yet.
        """
        if self.served is None:
            raise NoModel(self.why_empty())
        return self.served

    def why_empty(self) -> str:
        """Return in one line why no version is loaded."""
        if self.refusal is not None:
            return self.refusal.public
        return self.poll_problem or "the first one is being loaded."

    def poll_age_s(self) -> float | None:
        """Return the seconds since the registries' last successful answer; None before the first."""
        return None if self.polled_at is None else self.clock() - self.polled_at
