"""The floor: a typed Litestar route that answers a constant, on the same server as ours. Runs in our environment."""

import sys

import litestar
import msgspec
import uvicorn


class Request(msgspec.Struct):
    """The drivers to choose from."""

    request_id: str
    driver_ids: list[int]


class Answer(msgspec.Struct):
    """A driver and a constant score."""

    request_id: str
    prediction: int
    score: float


@litestar.post("/inference", status_code=200)
async def inference(data: Request) -> Answer:
    """Return the first of the drivers."""
    return Answer(data.request_id, data.driver_ids[0], 1.0)


@litestar.get("/ready")
async def ready() -> None:
    """Report that the server is up."""


if __name__ == "__main__":
    app = litestar.Litestar([inference, ready], openapi_config=None)
    uvicorn.run(app, port=int(sys.argv[1]), loop="uvloop", http="httptools", access_log=False, log_level="warning")
