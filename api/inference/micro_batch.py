"""One lookup and one prediction for one or more requests, and a result for each: in a thread or on the event loop."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa

from api.model.scorer import RowScores, Scorer
from scoring.errors import FeatureStoreError, UnusableFeature
from scoring.online.lookup import OnlineVectors
from scoring.online.reading import EntityRows, Sent, StoreRead
from scoring.predict import Scores, failed_on_all

RequestResult = RowScores | BaseException
GAVE_UP: RequestResult = TimeoutError()
"""The result of a request whose caller has given up."""


class PendingRequest:
    """A request that waits for its scores. Times are `time.perf_counter` in seconds."""

    __slots__ = ("batch", "entity_rows", "queued_at", "result", "rows", "scorer", "start")

    def __init__(self, scorer: Scorer, entity_rows: EntityRows, rows: int) -> None:
        """Create a waiting request.

        Args:
            scorer: the version that scores it.
            entity_rows: its entities.
            rows: how many they are.
        """
        self.scorer = scorer
        self.entity_rows = entity_rows
        self.rows = rows
        self.queued_at = time.perf_counter()
        self.batch: MicroBatch | None = None
        """Its micro-batch; None until that starts."""
        self.start = 0
        """The place of its first row in the micro-batch."""
        self.result: asyncio.Future[RowScores] | None = None
        """The future that its caller awaits; None without a caller."""

    @property
    def abandoned(self) -> bool:
        """Whether its caller has given up."""
        return self.result is not None and self.result.done()

    @property
    def in_store(self) -> bool:
        """Whether it waits for the feature store, or did so when it ended."""
        return self.batch is not None and self.batch.looked_up_at is None

    def may_join(self, other: "PendingRequest") -> bool:
        """Return whether it may share a micro-batch with `other`."""
        return self.scorer is other.scorer and self.scorer.mergeable

    def stages(self) -> Iterator[tuple[str, float, float]]:
        """Yield the stages that have ended: (`queue` | `lookup` | `predict`, started at, ended at)."""
        if self.batch is None:
            return
        marks = (self.queued_at, self.batch.started_at, self.batch.looked_up_at, self.batch.predicted_at)
        for name, started_at, ended_at in zip(("queue", "lookup", "predict"), marks, marks[1:], strict=False):
            if started_at is None or ended_at is None:
                return
            yield name, started_at, ended_at


class MicroBatch:
    """One lookup and one prediction for requests to one version.

    A worker thread calls `run`, or the event loop calls `send` and, when the features have arrived, `finish`.
    """

    __slots__ = (
        "as_of", "entity_rows", "failure_reported", "looked_up_at", "metrics_recorded", "online", "predicted_at",
        "requests", "started_at", "success_reported",
    )  # fmt: skip

    def __init__(self, requests: Sequence[PendingRequest]) -> None:
        self.requests = requests
        self.entity_rows = merged_rows(requests)
        self.online: OnlineVectors | None = None
        self.success_reported = False
        """Whether its success was reported to the circuit breaker."""
        self.failure_reported = False
        """Whether its failure was reported to the circuit breaker."""
        self.metrics_recorded = False
        """Whether the metrics have counted it."""
        self.as_of = datetime.now(UTC)
        """The time as of which features are read."""
        self.started_at = time.perf_counter()
        self.looked_up_at: float | None = None
        self.predicted_at: float | None = None
        start = 0
        for request in requests:
            request.batch, request.start = self, start
            start += request.rows

    def run(self, looked_up: Callable[[], None] = lambda: None) -> list[RequestResult]:
        """Return the result of each request, in order. Blocking.

        If the store fails, all requests have its error. If only a value in the store is unusable, each request is
        looked up and scored alone. If scoring fails, requests with an incomplete row are scored alone, and the others
        together; if there are only requests of one kind, each is scored alone. So no request fails because of another.

        Args:
            looked_up: called in this thread when the lookup for all of them has ended.
        """
        scorer = self.requests[0].scorer
        try:
            online = self.online = scorer.look_up(self.entity_rows, self.as_of)
        except BaseException as error:  # the callers get it
            # If the store itself fails, a retry per request would only make each of them wait for it again.
            store_failed = isinstance(error, FeatureStoreError) and not isinstance(error, UnusableFeature)
            if store_failed or len(self.requests) == 1:
                return [error] * len(self.requests)
            return [GAVE_UP if request.abandoned else MicroBatch([request]).run()[0] for request in self.requests]
        self.looked_up_at = time.perf_counter()
        looked_up()
        return self._results(online)

    def send(self) -> Sent | None:
        """Request the features without blocking; see `Scorer.send`."""
        return self.requests[0].scorer.send(self.entity_rows)

    def finish(self, read: StoreRead) -> list[RequestResult]:
        """Return the result of each request, in order, from what was read. Does not block.

        Raises:
            Exception: the features of a request can't be used.
        """
        online = self.online = self.requests[0].scorer.vectors(self.entity_rows, read, self.as_of)
        self.looked_up_at = time.perf_counter()
        return self._results(online)

    def _results(self, online: OnlineVectors) -> list[RequestResult]:
        results = _score(self.requests, self.entity_rows, online)
        self.predicted_at = time.perf_counter()
        return results


def _score(requests: Sequence[PendingRequest], entity_rows: EntityRows, online: OnlineVectors) -> list[RequestResult]:
    """Return the result of each request, by one prediction for all of them or, if that fails, by one for each."""
    try:
        return split(requests[0].scorer.score(entity_rows, online), requests)
    except BaseException as error:
        if len(requests) == 1:
            return [error]
    parts = _parts(requests, online)
    complete = [place for place, part in enumerate(parts) if part.reasons.null_count == len(part.reasons)]
    results: dict[int, RequestResult] = {}
    if 0 < len(complete) < len(requests):
        # Under the policy `reject`, the others fail without a prediction.
        merged = OnlineVectors(
            pa.concat_tables([parts[place].vectors for place in complete]),
            pa.concat_arrays([parts[place].reasons for place in complete]),
        )
        chosen = [requests[place] for place in complete]
        results = dict(zip(complete, _score(chosen, merged_rows(chosen), merged), strict=True))
    for place, (request, part) in enumerate(zip(requests, parts, strict=True)):
        if place not in results:
            results[place] = GAVE_UP if request.abandoned else _score([request], request.entity_rows, part)[0]
    return [results[place] for place in range(len(requests))]


def _parts(requests: Sequence[PendingRequest], online: OnlineVectors) -> list[OnlineVectors]:
    starts = itertools.accumulate((request.rows for request in requests[:-1]), initial=0)
    return [
        OnlineVectors(online.vectors.slice(start, request.rows), online.reasons.slice(start, request.rows))
        for request, start in zip(requests, starts, strict=True)
    ]


def merged_rows(requests: Sequence[PendingRequest]) -> EntityRows:
    """Return the entities of requests with the same columns."""
    if len(requests) == 1:
        return requests[0].entity_rows
    columns = requests[0].entity_rows
    return {name: list(itertools.chain.from_iterable(each.entity_rows[name] for each in requests)) for name in columns}


def split(scores: Scores | RowScores, requests: Sequence[PendingRequest]) -> list[RequestResult]:
    """Return the result of each of the requests that were scored together."""
    if isinstance(scores, RowScores):
        if len(requests) == 1:
            return [scores]
        outputs, reasons, failure = scores.outputs, scores.reasons, None
    else:
        outputs, reasons = [column.to_pylist() for column in scores.outputs.columns], _to_list(scores.reasons)
        failure = scores.failure
    ends = itertools.accumulate(request.rows for request in requests)
    results = [
        RowScores([values[end - request.rows : end] for values in outputs], reasons[end - request.rows : end])
        for request, end in zip(requests, ends, strict=True)
    ]
    if failure is None:
        return list(results)
    return [failure if _failed_on_all(each) else each for each in results]


def _failed_on_all(scores: RowScores) -> bool:
    return failed_on_all(sum(value is not None for value in scores.outputs[0]), Counter(scores.reasons))


def _to_list(column: pa.Array) -> list[str | None]:
    return [None] * len(column) if column.null_count == len(column) else column.to_pylist()
