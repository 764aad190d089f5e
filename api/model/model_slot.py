"""The slot that holds what serves now."""

import time
from collections.abc import Callable

import msgspec

from api.errors import NoModel
from api.model.loading import Target
from api.model.request_schema import RequestForm
from api.model.scorer import Scorer


class Served(msgspec.Struct, frozen=True):
    """What serves: one version with everything that a request needs of it. Swapped as a whole."""

    target: Target
    scorer: Scorer
    form: RequestForm


class Refusal(msgspec.Struct, frozen=True):
    """A version that should serve and can't: it was refused, or this machine can't try it."""

    target: Target
    reason: str
    """For the log."""
    public: str
    """For /ready."""
    attempts: int
    of_this_machine: bool
    """Whether this machine is at fault, and nothing is known of the version."""
    retry_at: float
    """On the slot's clock. It is tried earlier only if the alias or the feature definitions change."""


class ModelSlot:
    """Holds what serves now. Read and written on the event loop only, so that a request sees one version."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: a clock in seconds."""
        self.clock = clock
        self.served: Served | None = None
        self.refusal: Refusal | None = None
        self.polled_at: float | None = None
        """When the registries last answered what should serve."""
        self.poll_problem: str | None = None
        """Why they did not answer the last poll; None if they did."""
        self.swaps = 0
        """How often another version began to serve, or the same one on other feature definitions."""
        self.refusals = 0
        """How often a version that should serve was refused; each attempt counts."""

    def current(self) -> Served:
        """What serves now.

        Raises:
            NoModel: nothing does yet.
        """
        if self.served is None:
            raise NoModel(self.why_empty())
        return self.served

    def why_empty(self) -> str:
        """Why nothing serves, in one line."""
        if self.refusal is not None:
            return self.refusal.public
        return self.poll_problem or "the first one is being loaded."

    def poll_age_s(self) -> float | None:
        """Seconds since the registries last answered what should serve; None if they never did."""
        return None if self.polled_at is None else self.clock() - self.polled_at
