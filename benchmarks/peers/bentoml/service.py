"""The service on BentoML: one worker, Feast's SDK, a frame, scikit-learn."""

import bentoml
from pydantic import BaseModel
from ranker import ItemRanker as Items
from ranker import Ranker


class Request(BaseModel):
    """The drivers to choose from."""

    request_id: str
    driver_ids: list[int]


class Answer(BaseModel):
    """The best driver."""

    request_id: str
    prediction: int | None
    score: float | None


# One worker, as for all servers. The access log is off, in the peer's favor: the product writes a line per request.
@bentoml.service(workers=1, traffic={"timeout": 10}, logging={"access": {"enabled": False}})
class DriverRanker:
    """`bentoml serve service:DriverRanker`."""

    def __init__(self) -> None:
        self.ranker = Ranker()

    @bentoml.api(route="/inference")
    def inference(self, request_id: str, driver_ids: list[int]) -> Answer:
        """Return the best of these drivers."""
        prediction, score = self.ranker.best(driver_ids)
        return Answer(request_id=request_id, prediction=prediction, score=score)


@bentoml.service(workers=1, traffic={"timeout": 10}, logging={"access": {"enabled": False}})
class BatchingDriverRanker:
    """The same with BentoML's adaptive batching, which passes waiting requests as one list."""

    def __init__(self) -> None:
        self.ranker = Ranker()

    @bentoml.api(route="/inference", batchable=True, max_batch_size=64, max_latency_ms=1000)
    def inference(self, requests: list[Request]) -> list[Answer]:
        """Return the best of each request's drivers."""
        best = self.ranker.best_of_each([request.driver_ids for request in requests])
        return [
            Answer(request_id=request.request_id, prediction=prediction, score=score)
            for request, (prediction, score) in zip(requests, best, strict=True)
        ]


@bentoml.service(workers=1, traffic={"timeout": 10}, logging={"access": {"enabled": False}})
class ItemRanker:
    """Ranks items for a user."""

    def __init__(self) -> None:
        self.ranker = Items()

    @bentoml.api(route="/inference")
    def inference(self, request_id: str, user_id: int, item_ids: list[int]) -> Answer:
        """Return the best of these items for the user."""
        prediction, score = self.ranker.best_for(user_id, item_ids)
        return Answer(request_id=request_id, prediction=prediction, score=score)
