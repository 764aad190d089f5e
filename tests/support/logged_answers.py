"""The API in this process, with its prediction log on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from litestar.testing import TestClient

from api.app import create_app
from api.model.loading import RegistryLoader
from scoring.models.admission import validate
from scoring.models.registry import MlflowRegistry
from tests.support import servers
from tests.support.worlds import World


def answer_and_log(world: World, log: Path, drivers: Sequence[int], **members: Any) -> None:
    """Answer two requests for these drivers, with these members of the body, and log the answers."""
    settings = world.settings_with(SERVING_DEADLINE_S="5", SERVING_PREDICTION_LOG=str(log))
    registry = MlflowRegistry.from_settings(settings)
    loader = RegistryLoader(settings, registry, lambda files, rows: validate(files, rows)[1])
    with TestClient(create_app(settings, loader)) as client:
        servers.wait_until(lambda: client.get("/ready").status_code == 200, lambda: client.get("/ready").text)
        for request_id in ("a", "b"):
            body = {"request_id": request_id, "driver_ids": list(drivers)} | members
            assert client.post("/scores", json=body).status_code == 200
