"""One request's way through a worker thread, and when it reached each stage."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from api.scorer import EntityRows, Scorer
from scoring.online import OnlineVectors
from scoring.predict import Scores


class Stages:
    """The blocking part of one request. Called once, in a worker thread; read on the event loop, at any time.

    Times are `time.perf_counter` in seconds; None for what was not reached.
    """

    __slots__ = ("_entity_rows", "_scorer", "looked_up_at", "online", "predicted_at", "queued_at", "started_at")

    def __init__(self, scorer: Scorer, entity_rows: EntityRows) -> None:
        """Args: the version that serves this request, and what it is asked for."""
        self._scorer = scorer
        self._entity_rows = entity_rows
        self.online: OnlineVectors | None = None
        self.queued_at = time.perf_counter()
        self.started_at: float | None = None
        self.looked_up_at: float | None = None
        self.predicted_at: float | None = None

    def __call__(self) -> Scores:
        """Look up and predict. Raises what `Scorer` raises."""
        self.started_at = time.perf_counter()
        self.online = self._scorer.look_up(self._entity_rows, datetime.now(UTC))
        self.looked_up_at = time.perf_counter()
        scores = self._scorer.score(self._entity_rows, self.online)
        self.predicted_at = time.perf_counter()
        return scores

    @property
    def in_store(self) -> bool:
        """Whether it waits for the feature store, or did when it ended."""
        return self.started_at is not None and self.looked_up_at is None

    def finished(self) -> Iterator[tuple[str, float, float]]:
        """What was done so far: (`queue` | `lookup` | `predict`, began at, ended at)."""
        marks = (self.queued_at, self.started_at, self.looked_up_at, self.predicted_at)
        for name, began, ended in zip(("queue", "lookup", "predict"), marks, marks[1:], strict=False):
            if began is None or ended is None:
                return
            yield name, began, ended
