"""The course's service on BentoML: one worker, Feast's SDK, a frame, scikit-learn."""

import bentoml
from course import Ranker
from pydantic import BaseModel


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
