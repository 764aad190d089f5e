"""From the body of a request to its scores: under the deadline, with room for it, by a store that answers."""

import time

import msgspec

from api.errors import DeadlineExceeded, Overloaded
from api.inference.merging import MicroBatcher
from api.inference.stages import PendingRequest, RowScores
from api.inference.timers import Timers
from api.model.breaker import Breaker
from api.model.model_slot import ModelSlot, Served
from api.model.request_schema import EntityRequest
from api.model.store_probe import NO_ANSWER
from api.telemetry.metrics import Metrics
from api.telemetry.request_context import RequestContext
from scoring.errors import FeatureStoreError, UnusableFeature


class Scored(msgspec.Struct, frozen=True):
    """What an answer is made of."""

    served: Served
    entities: EntityRequest
    scores: RowScores


class RequestScoring:
    """Scores requests with what serves now."""

    def __init__(
        self, slot: ModelSlot, merger: MicroBatcher, breaker: Breaker, metrics: Metrics, deadline_s: float
    ) -> None:
        """Args: what serves, who works, whether the store answers, who counts, and the seconds that it may take."""
        self._slot = slot
        self._merger = merger
        self._breaker = breaker
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._deadlines = Timers(deadline_s)

    def check_room(self) -> None:
        """Nothing, while a request more may wait.

        Raises:
            Overloaded: it may not.
        """
        if self._merger.full:
            raise Overloaded

    async def score(self, body: bytes, context: RequestContext) -> Scored:
        """The scores that `body` asks for; `context` is told who asked for what.

        Raises:
            RequestError, EntityRowsError, FeaturesRejected: the request can't be answered.
            Unavailable, FeatureStoreError: not now.
            PredictionFailed: the model failed.
        """
        # Taken once: a swap meanwhile changes nothing for this request.
        served = self._slot.current()
        context.model = str(served.scorer.version)
        entities = served.form.decode(body)
        context.request_id = entities.request_id
        self._breaker.check()
        asked = context.asked = PendingRequest(served.scorer, entities.entity_rows, entities.rows)
        try:
            scores = await self._merger.score(asked, self._deadlines)
        except TimeoutError:
            if asked.in_store:
                self._blame_store(asked, NO_ANSWER)
            raise DeadlineExceeded(self._deadline_s) from None
        except UnusableFeature:
            raise
        except FeatureStoreError as error:
            self._blame_store(asked, error.public, str(error))
            raise
        finally:
            asked.over = True
            self._metrics.worked_on(asked, time.time())
        self._breaker.answered()
        self._metrics.scored(scores)
        return Scored(served, entities, scores)

    def _blame_store(self, asked: PendingRequest, problem: str, reason: str | None = None) -> None:
        if asked.run is not None and not asked.run.blamed:
            asked.run.blamed = True
            self._breaker.failed(problem, reason)
