"""The scoring that all wire formats share: circuit breaker, micro-batching, deadline and metrics."""

import contextlib
import time
from collections.abc import Iterator

from api.errors import DeadlineExceeded, Overloaded
from api.inference.batcher import MicroBatcher
from api.inference.micro_batch import PendingRequest
from api.model.model_slot import ModelSlot, Served
from api.model.request_schema import EntityRequest
from api.model.scorer import RowScores
from api.model.store_health import NO_ANSWER, Breaker
from api.protocols.problems import type_of
from api.shadow.challenger import Challenger
from api.telemetry.metrics import Metrics
from api.telemetry.prediction_log import PredictionLog
from api.telemetry.request_context import RequestContext
from scoring.errors import EntityRowsError, FeatureStoreError, UnusableFeature

CANCELLED = "cancelled"
"""In the prediction log: the process ended before the request was answered."""
# Each may hold its body, its decoded table and its answer in memory.
MAX_BULK_REQUESTS = 2


class Scoring:
    """Scores requests with the version that serves now."""

    def __init__(
        self,
        slot: ModelSlot,
        breaker: Breaker,
        batcher: MicroBatcher,
        metrics: Metrics,
        prediction_log: PredictionLog | None = None,
        challenger: Challenger | None = None,
    ) -> None:
        self._slot = slot
        self._challenger = challenger
        self._prediction_log = prediction_log
        self._breaker = breaker
        self._batcher = batcher
        self._metrics = metrics
        self._bulk = 0

    @property
    def full(self) -> bool:
        """Whether `score` would raise Overloaded now."""
        return self._batcher.full

    @contextlib.contextmanager
    def bulk(self, context: RequestContext) -> Iterator[None]:
        """Count a request with a large body or many entities, once.

        Raises:
            Overloaded: MAX_BULK_REQUESTS others are unfinished.
        """
        if context.bulk:
            yield
            return
        if self._bulk >= MAX_BULK_REQUESTS:
            raise Overloaded
        context.bulk = True
        self._bulk += 1
        try:
            yield
        finally:
            self._bulk -= 1

    def current(self, context: RequestContext) -> Served:
        """Return what serves now, and record it. Called once per request, so that a swap has no effect on it.

        Raises:
            NoModel: no version is loaded yet.
        """
        served = self._slot.current()
        context.model = str(served.scorer.version)
        return served

    async def score(
        self, served: Served, request: EntityRequest, context: RequestContext, deadline_s: float | None = None
    ) -> RowScores:
        """Score the entities of a request, and record in `context` what is known about it.

        It has `deadline_s` seconds, or else SERVING_DEADLINE_S.

        Raises:
            InvalidRequest, FeaturesRejected: the request can't be answered.
            Unavailable, FeatureStoreError: it can't be answered now.
            PredictionFailed: the model failed.
        """
        context.request_id = request.request_id
        context.overrides = served.schema.overrides(request)
        pending = PendingRequest(served.scorer, request.entity_rows, request.rows)
        scores = problem = None
        try:
            scores = await self._score(served, pending, context, deadline_s)
        except BaseException as error:
            problem = type_of(error).name if isinstance(error, Exception) else CANCELLED
            raise
        finally:
            if self._prediction_log is not None:
                self._prediction_log.add(served, request.request_id, pending, scores, problem)
            if self._challenger is not None and self._challenger.slot.served is not None:
                self._challenger.add(served, request.request_id, pending)
        return scores

    async def _score(
        self, served: Served, pending: PendingRequest, context: RequestContext, deadline_s: float | None
    ) -> RowScores:
        self._breaker.check()
        context.pending = pending
        try:
            scores = await self._batcher.score(pending, deadline_s)
        except TimeoutError:
            if pending.in_store:
                self._report_store_failure(pending, NO_ANSWER)
            raise DeadlineExceeded(deadline_s or self._batcher.deadline_s) from None
        except EntityRowsError as error:
            raise served.schema.invalid(str(error).removesuffix(".")) from None
        except UnusableFeature:
            raise
        except FeatureStoreError as error:
            self._report_store_failure(pending, error.public, str(error))
            raise
        finally:
            self._metrics.count_scoring(pending, time.time())
        if pending.batch is not None and not pending.batch.success_reported:
            pending.batch.success_reported = True
            self._breaker.answered()
        self._metrics.count_excluded(scores)
        return scores

    def _report_store_failure(self, pending: PendingRequest, problem: str, reason: str | None = None) -> None:
        """Report a failure of the store: once per batch, regardless of the number of failed requests."""
        if pending.batch is not None and not pending.batch.failure_reported:
            pending.batch.failure_reported = True
            self._breaker.failed(problem, reason)
