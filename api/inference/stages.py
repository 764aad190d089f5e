"""The blocking part of scoring: one or several requests looked up and predicted together, each with its own outcome."""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec
import pyarrow as pa

from api.model.scorer import EntityRows, Scorer
from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.online.lookup import OnlineVectors
from scoring.predict import Scores


class RowScores(msgspec.Struct, frozen=True):
    """The scores of one request's n entities, in its order."""

    values: list[float | None]
    """(n,). None where the entity was not scored; always finite."""
    reasons: list[str | None]
    """(n,). As in `Scores.reasons`."""


class PendingRequest:
    """One request from the moment that it waits. Times are `time.perf_counter` in seconds."""

    __slots__ = ("entity_rows", "over", "queued_at", "rows", "run", "scorer")

    def __init__(self, scorer: Scorer, entity_rows: EntityRows, rows: int) -> None:
        """Args: the version that serves it, what it asks for, and for how many entities."""
        self.scorer = scorer
        self.entity_rows = entity_rows
        self.rows = rows
        self.queued_at = time.perf_counter()
        self.run: MicroBatch | None = None
        """With which others it is worked on; None before that."""
        self.over = False
        """Whether nobody waits for it any more."""

    @property
    def in_store(self) -> bool:
        """Whether it waits for the feature store, or did when it ended."""
        return self.run is not None and self.run.looked_up_at is None

    def finished(self) -> Iterator[tuple[str, float, float]]:
        """What was done so far: (`queue` | `lookup` | `predict`, began at, ended at)."""
        if self.run is None:
            return
        marks = (self.queued_at, self.run.started_at, self.run.looked_up_at, self.run.predicted_at)
        for name, began, ended in zip(("queue", "lookup", "predict"), marks, marks[1:], strict=False):
            if began is None or ended is None:
                return
            yield name, began, ended


Settlement = RowScores | BaseException


class MicroBatch:
    """One lookup and one prediction for some requests of the same version. Made and called in a worker thread."""

    __slots__ = ("asked", "blamed", "counted", "looked_up_at", "online", "predicted_at", "started_at")

    def __init__(self, asked: Sequence[PendingRequest]) -> None:
        """Args: at least one request, all for one scorer."""
        self.asked = asked
        self.online: OnlineVectors | None = None
        self.blamed = self.counted = False
        """Whether the breaker and the metrics were told of it: once, though several requests end with it."""
        self.started_at = time.perf_counter()
        self.looked_up_at: float | None = None
        self.predicted_at: float | None = None
        for each in asked:
            each.run = self

    def __call__(self, looked_up: Callable[[], None] = lambda: None) -> list[Settlement]:
        """What each request gets, in their order. Where it fails for all, each is tried by itself.

        So a request that the store or the model can't digest fails alone, as if it had come alone.

        Args:
            looked_up: is told, in this thread, when the store has answered for all of them.
        """
        scorer = self.asked[0].scorer
        rows = _together(self.asked)
        try:
            online = self.online = scorer.look_up(rows, datetime.now(UTC))
        except BaseException as error:  # it belongs to the callers, whatever it is; the thread lives on
            # A store that fails would only let each wait for it again.
            store_failed = isinstance(error, FeatureStoreError) and not isinstance(error, UnusableFeature)
            if store_failed or len(self.asked) == 1:
                return [error] * len(self.asked)
            return [outcome for each in self.asked for outcome in ([GAVE_UP] if each.over else MicroBatch([each])())]
        self.looked_up_at = time.perf_counter()
        looked_up()
        outcomes = _score(scorer, self.asked, online)
        self.predicted_at = time.perf_counter()
        return outcomes


GAVE_UP: Settlement = TimeoutError()
"""For a request whose caller does not wait any more."""


def _score(scorer: Scorer, asked: Sequence[PendingRequest], online: OnlineVectors) -> list[Settlement]:
    """What each request gets from one prediction for all; where that fails, from one for each."""
    try:
        return _apart(scorer.score(_together(asked), online), asked)
    except BaseException as error:
        if len(asked) == 1:
            return [error]
    parts = _parts(asked, online)
    complete = [place for place, part in enumerate(parts) if part.reasons.null_count == len(part.reasons)]
    outcomes: dict[int, Settlement] = {}
    if 0 < len(complete) < len(asked):
        # Under the policy `reject` it is the others that fail, without a prediction.
        together = OnlineVectors(
            pa.concat_tables([parts[place].vectors for place in complete]),
            pa.concat_arrays([parts[place].reasons for place in complete]),
        )
        those = [asked[place] for place in complete]
        outcomes = dict(zip(complete, _score(scorer, those, together), strict=True))
    for place, (each, part) in enumerate(zip(asked, parts, strict=True)):
        if place not in outcomes:
            outcomes[place] = GAVE_UP if each.over else _score(scorer, [each], part)[0]
    return [outcomes[place] for place in range(len(asked))]


def _parts(asked: Sequence[PendingRequest], online: OnlineVectors) -> list[OnlineVectors]:
    starts = itertools.accumulate((each.rows for each in asked[:-1]), initial=0)
    return [
        OnlineVectors(online.vectors.slice(start, each.rows), online.reasons.slice(start, each.rows))
        for each, start in zip(asked, starts, strict=True)
    ]


def _together(asked: Sequence[PendingRequest]) -> EntityRows:
    if len(asked) == 1:
        return asked[0].entity_rows
    names = asked[0].entity_rows
    return {name: list(itertools.chain.from_iterable(each.entity_rows[name] for each in asked)) for name in names}


def _texts(column: pa.Array) -> list[str | None]:
    return [None] * len(column) if column.null_count == len(column) else column.to_pylist()


def _apart(scores: Scores, asked: Sequence[PendingRequest]) -> list[Settlement]:
    values, reasons = scores.predictions.to_pylist(), _texts(scores.reasons)
    if len(asked) == 1:
        return [RowScores(values, reasons)]
    outcomes: list[Settlement] = []
    start = 0
    for each in asked:
        end = start + each.rows
        outcomes.append(RowScores(values[start:end], reasons[start:end]))
        start = end
    return outcomes
