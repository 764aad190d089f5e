"""The same service on FastAPI and uvicorn, one process."""

import sys

import uvicorn
from course import Ranker
from fastapi import FastAPI
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


def create_app() -> FastAPI:
    """The application with its model loaded."""
    app, ranker = FastAPI(), Ranker()

    # A plain function: FastAPI runs it in a thread, as its documentation says for libraries that block.
    @app.post("/inference")
    def inference(request: Request) -> Answer:
        prediction, score = ranker.best(request.driver_ids)
        return Answer(request_id=request.request_id, prediction=prediction, score=score)

    @app.get("/ready")
    def ready() -> None:
        return None

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False)
