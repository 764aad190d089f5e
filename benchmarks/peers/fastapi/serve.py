"""The same service on FastAPI and uvicorn, one process."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
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


def create_app() -> FastAPI:
    """Create the application and load its model."""
    app, ranker = FastAPI(), Ranker()

    # A plain function, which FastAPI runs in a thread, as its documentation recommends for blocking libraries.
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
