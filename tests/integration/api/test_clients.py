"""Clients that people already have, on the real API and its SQLite stores. Each gets the bits of POST /scores."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.api_server import ApiServer
from tests.support.documentation import code_blocks
from tests.support.worlds import build_driver_world, register_driver_model

KEY = "0123456789abcdef"
DRIVERS = [1001, 1002, 1003, 1004, 1005]
UNKNOWN_DRIVER = 9999


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """The API, which requires a key. Reasons and scores of DRIVERS and UNKNOWN_DRIVER do not change."""
    folder = tmp_path_factory.mktemp("drivers")
    world = build_driver_world(folder)
    register_driver_model(world)
    environment = world.environment | {"SERVING_DEADLINE_S": "5", "SERVING_API_KEYS": KEY, "SERVING_DRAIN_S": "0"}
    with ApiServer(folder, environment=environment, key=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def scores(server: ApiServer) -> dict[int, float | None]:
    """Driver → score in JSON; None for UNKNOWN_DRIVER."""
    body = json.dumps({"request_id": "r", "driver_ids": [*DRIVERS, UNKNOWN_DRIVER]}).encode()
    rows = server.ask(body, "/scores").json()["scores"]
    assert [row["reason"] for row in rows] == [*[None] * len(DRIVERS), "not_found"]
    return {row["driver_id"]: row["score"] for row in rows}


def for_server(code: str, server: ApiServer) -> str:
    """Return an example of docs/clients.md with the server's address and key."""
    return code.replace("http://localhost:8172", server.url).replace("<key>", KEY)


def test_the_json_of_inference_has_the_best_of_the_scores(server: ApiServer, scores: dict[int, float | None]) -> None:
    known = {driver: score for driver, score in scores.items() if score is not None}
    answer = server.ask(json.dumps({"request_id": "r", "driver_ids": DRIVERS}).encode()).json()
    assert (answer["prediction"], answer["score"]) == max(known.items(), key=lambda item: item[1])


GENERATED_CLIENT_ERRORS = """
import json
from scores_client import errors
problem = scores.sync(client=client, body=Request(request_id="2", driver_ids=[]))
address = client.get_httpx_client().base_url
refused = scores.sync(client=AuthenticatedClient(f"{address}", token="unknown"), body=Request(request_id="3"))
nowhere = AuthenticatedClient(f"{address}/nowhere", token="unknown", raise_on_unexpected_status=True)
try:
    scores.sync(client=nowhere, body=Request(request_id="4"))
except errors.UnexpectedStatus as error:
    print(json.dumps([type(problem).__name__, problem.status, problem.example, refused.type_, error.status_code]))
"""


def test_a_client_generated_from_the_document_gets_scores_and_typed_problems(
    server: ApiServer, scores: dict[int, float | None], tmp_path: Path
) -> None:
    code = code_blocks("clients.md", "Generated client")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def run(*command: str) -> str:
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PATH": path},
            capture_output=True,
            timeout=60,
            check=False,
            text=True,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        return ran.stdout

    generated = run("sh", "-c", f"{for_server(code['sh'], server).strip()} --fail-on-warning")
    assert generated == "Generating scores_client\n"
    printed = run(sys.executable, "-c", for_server(code["python"], server) + GENERATED_CLIENT_ERRORS)
    *rows, errors = printed.splitlines()
    assert rows == [
        f"1001 {scores[1001]} None",
        f"1002 {scores[1002]} None",
        f"{UNKNOWN_DRIVER} None not_found",
    ]
    name, status, example, type_, unexpected = json.loads(errors)
    assert (name, status, set(example)) == ("Problem", 422, {"request_id", "driver_ids"})
    assert (type_, unexpected) == ("urn:model-serving:problem:key-needed", 404)
