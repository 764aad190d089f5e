"""The course's service on BentoML: one worker, Feast's SDK, a frame, scikit-learn."""

import bentoml
from course import Ranker
from pydantic import BaseModel


class Request(BaseModel):
    """Which drivers to choose from."""

    request_id: str
    driver_ids: list[int]


class Answer(BaseModel):
    """The best driver."""

    request_id: str
    prediction: int | None
    score: float | None


# One worker as for everybody. The access log is off: the peer is spared a line a request, which we write.
@bentoml.service(workers=1, traffic={"timeout": 10}, logging={"access": {"enabled": False}})
class DriverRanker:
    """`bentoml serve service:DriverRanker`."""

    def __init__(self) -> None:
        self.ranker = Ranker()

    @bentoml.api(route="/inference")
    def inference(self, request_id: str, driver_ids: list[int]) -> Answer:
        """The best of these drivers."""
        prediction, score = self.ranker.best(driver_ids)
        return Answer(request_id=request_id, prediction=prediction, score=score)


@bentoml.service(workers=1, traffic={"timeout": 10}, logging={"access": {"enabled": False}})
class MergingDriverRanker:
    """The same with BentoML's adaptive batching, which hands over the requests that wait as one list."""

    def __init__(self) -> None:
        self.ranker = Ranker()

    @bentoml.api(route="/inference", batchable=True, max_batch_size=64, max_latency_ms=1000)
    def inference(self, requests: list[Request]) -> list[Answer]:
        """The best of each request's drivers."""
        best = self.ranker.best_of_each([request.driver_ids for request in requests])
        return [
            Answer(request_id=request.request_id, prediction=prediction, score=score)
            for request, (prediction, score) in zip(requests, best, strict=True)
        ]
