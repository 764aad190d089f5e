"""Clients that people already have, on the real API and its SQLite stores. Each gets the bits of POST /scores."""

import io
import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pandas
import pyarrow as pa
import pytest

from tests.support.api_server import ApiServer
from tests.support.documentation import code_blocks
from tests.support.foreign_clients import run_script
from tests.support.worlds import build_driver_world, register_driver_model

KEY = "0123456789abcdef"
DRIVERS = [1001, 1002, 1003, 1004, 1005]
UNKNOWN_DRIVER = 9999
KEY_NEEDED = "An API key is required: send it in the header Authorization: Bearer <key>."


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
    return code.replace("localhost:8172", f"{server.host}:{server.port}").replace("<key>", KEY)


def test_the_json_of_inference_has_the_best_of_the_scores(server: ApiServer, scores: dict[int, float | None]) -> None:
    known = {driver: score for driver, score in scores.items() if score is not None}
    answer = server.ask(json.dumps({"request_id": "r", "driver_ids": DRIVERS}).encode()).json()
    assert (answer["prediction"], answer["score"]) == max(known.items(), key=lambda item: item[1])


def test_the_documented_request_in_json_gets_the_best_in_order(
    server: ApiServer, scores: dict[int, float | None]
) -> None:
    documented: dict[str, Any] = {}
    exec(for_server(code_blocks("clients.md", "JSON")["python"], server), documented)  # noqa: S102 - our own
    known = {driver: score for driver, score in scores.items() if score is not None and driver <= 1003}
    best = sorted(known.items(), key=lambda item: -item[1])[:2]
    assert documented["answer"]["top"] == [{"driver_id": driver, "score": score} for driver, score in best]


GENERATED_CLIENT_ERRORS = """
import importlib, json, pkgutil
import scores_client
from scores_client import errors
for module in pkgutil.walk_packages(scores_client.__path__, "scores_client."):
    importlib.import_module(module.name)
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
        assert ran.returncode == 0, ran.stderr
        return ran.stdout + ran.stderr

    warnings = run("sh", "-c", for_server(code["sh"], server))
    assert re.findall(r"^Unable .*|^.*not be generated.*|^ERROR.*", warnings, re.MULTILINE) == []
    operations = [each for item in server.get("/openapi.json").json()["paths"].values() for each in item.values()]
    media_types = {name for each in operations for name in each.get("requestBody", {}).get("content", ())}
    assert set(re.findall(r"^Unsupported content type (.*)", warnings, re.MULTILINE)) < media_types
    for each in operations:
        assert (tmp_path / "scores_client" / "api" / each["tags"][0] / f"{each['operationId']}.py").exists()
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


class AddsTheKey(BaseHTTPRequestHandler):
    """A proxy for clients that can't send a key."""

    protocol_version = "HTTP/1.1"
    server_behind: ClassVar[ApiServer]

    def do_GET(self) -> None:
        self._pass_on(self.server_behind.get(self.path))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._pass_on(self.server_behind.ask(body, self.path, **{"Content-Type": self.headers["Content-Type"]}))

    def _pass_on(self, response: httpx.Response) -> None:
        self.send_response(response.status_code)
        for name in ("Content-Type", "Content-Length"):
            self.send_header(name, response.headers[name])
        self.end_headers()
        self.wfile.write(response.content)


@pytest.fixture
def proxy(server: ApiServer) -> Iterator[int]:
    """The port of a proxy that adds the key."""
    handler = type("Handler", (AddsTheKey,), {"server_behind": server})
    with ThreadingHTTPServer((server.host, 0), handler) as listening:
        threading.Thread(target=listening.serve_forever).start()
        yield listening.server_port
        listening.shutdown()


def test_mlflows_client_and_requests_with_pandas_get_the_scores(
    server: ApiServer, proxy: int, scores: dict[int, float | None]
) -> None:
    code = for_server(code_blocks("clients.md", "MLflow")["python"], server)
    documented: dict[str, Any] = {}
    exec(code.replace('"localhost", 8172', f'"{server.host}", {proxy}'), documented)  # noqa: S102 - our own
    expected = [scores[driver] for driver in documented["rows"]["driver_id"]]
    assert documented["answer"] == {"predictions": expected, "reasons": [None, None, "not_found"]}
    assert documented["predictions"].replace(math.nan, None).tolist() == expected
    assert documented["reasons"] == [None, None, "not_found"]

    client = documented["client"]
    frame = pandas.DataFrame({"driver_id": [*DRIVERS, UNKNOWN_DRIVER]})
    floats = frame.astype("float64")  # as after a join with missing rows
    for data in (frame, floats, frame.to_numpy(), floats.to_numpy(), frame["driver_id"].tolist()):
        assert client.invoke(data)["predictions"] == list(scores.values())
    in_csv = server.ask(frame.to_csv().encode(), "/invocations", **{"Content-Type": "text/csv"})
    assert in_csv.json()["predictions"] == list(scores.values())
    assert json.loads(client.get_version())["mlflow"] == metadata.version("mlflow")


def test_mlflows_client_sees_errors_as_its_own(server: ApiServer, proxy: int) -> None:
    from mlflow.pyfunc.scoring_server.client import ScoringServerClient

    frame = pandas.DataFrame({"driver_id": ["a"]})
    with pytest.raises(Exception, match=r"Invocation failed \(error code 400, response: .*\"BAD_REQUEST\".*instance"):
        ScoringServerClient(server.host, proxy).invoke(frame)
    with pytest.raises(Exception, match=r"Invocation failed \(error code 401, response: .*\"UNAUTHENTICATED\""):
        ScoringServerClient(server.host, server.port).invoke(frame)


TRITON_AND_KSERVE = """
import json, sys
from tritonclient.http import InferRequestedOutput
from tritonclient.utils import InferenceServerException

found = {"triton": [predictions.tolist(), [each.decode() for each in reasons]]}
headers = {"Authorization": "Bearer <key>"}
drivers.set_data_from_numpy(np.array([1001, 1002, 9999]), binary_data=False)
outputs = [InferRequestedOutput(name, binary_data=False) for name in ("reason", "prediction")]
result = client.infer("driver_ranker", [drivers], headers=headers, outputs=outputs, request_id="r-1", model_version="2")
found["triton_json"] = [result.as_numpy("prediction").tolist(), result.as_numpy("reason").tolist()]
found["ids"] = [result.get_response()["id"]]
found["ready"] = [
    client.is_server_live(),
    client.is_server_ready(),
    *(client.is_model_ready(*each) for each in [("driver_ranker",), ("driver_ranker", "2")]),
    *(client.is_model_ready(*each) for each in [("other",), ("driver_ranker", "1")]),
]
found["server"] = client.get_server_metadata()["extensions"]
found["model"] = client.get_model_metadata("driver_ranker")
found["errors"] = []
other = InferInput("other", [1], "INT64")
other.set_data_from_numpy(np.array([1]))
refused = [("driver_ranker", other, headers), ("other", drivers, headers), ("driver_ranker", drivers, {})]
for name, tensor, sent in refused:
    try:
        client.infer(name, [tensor], headers=sent)
    except InferenceServerException as error:
        found["errors"].append([error.status(), error.message()])
KSERVE
found["kserve"] = [predictions.tolist(), reasons.tolist()]


async def others():
    base, client = sys.argv[1], InferenceRESTClient(RESTConfig(protocol="v2"))
    found["kserve_ready"] = [
        await client.is_server_live(base), await client.is_server_ready(base),
        await client.is_model_ready(base, "driver_ranker"), await client.is_model_ready(base, "other"),
    ]
    in_json = InferInput("driver_id", [3], "INT64", data=[1001, 1002, 9999])
    wanted = InferRequest("driver_ranker", [in_json], parameters={"binary_data_output": True}, request_id="r-2")
    response = await client.infer(base, wanted, "driver_ranker", {"Authorization": "Bearer <key>"})
    found["kserve_binary"] = [response.outputs[0].as_numpy().tolist(), response.outputs[1].as_numpy().tolist()]
    found["ids"].append(response.id)
    try:
        await client.infer(base, request, "driver_ranker")
    except Exception as error:
        found["kserve_error"] = [type(error).__name__, error.response.status_code, str(error)]


asyncio.run(others())
print(json.dumps(found))
"""


MLSERVER = """
import json
from mlserver.codecs import StringCodec
from mlserver.types import InferenceRequest, MetadataModelResponse, RequestInput

answer = InferenceResponse.model_validate_json(response.content)
base, headers = str(response.request.url).removesuffix("/infer"), {"Authorization": "Bearer <key>"}
tensor = RequestInput(name="driver_id", shape=[1], datatype="INT64", data=[1001])
chosen = InferenceRequest(id="r-3", inputs=[tensor], outputs=[{"name": "reason"}])
reason = httpx.post(f"{base}/infer", json=chosen.model_dump(exclude_none=True), headers=headers).json()
print(json.dumps({
    "mlserver": [scores["prediction"].tolist(), scores["reason"].tolist()],
    "version": answer.model_version,
    "reason": [StringCodec.decode_output(each) for each in InferenceResponse.model_validate(reason).outputs],
    "metadata": MetadataModelResponse.model_validate(httpx.get(base).json()).model_dump(exclude_none=True),
    "error": httpx.post(f"{base}/infer", content="[]", headers=headers).json()["error"],
}))
"""


def of(scores: dict[int, float | None]) -> list[list[Any]]:
    """Return the outputs for the drivers of the examples, as the clients read them."""
    return [[scores[1001], scores[1002], None], ["", "", "not_found"]]


def known(outputs: list[list[Any]]) -> list[list[Any]]:
    """Return outputs with None in place of NaN, which is not equal to itself."""
    return [[None if value != value else value for value in values] for values in outputs]  # noqa: PLR0124


def test_the_clients_of_triton_and_kserve(server: ApiServer, scores: dict[int, float | None]) -> None:
    triton, kserve = (code_blocks("clients.md", name)["python"] for name in ("Triton", "KServe"))
    found = run_script(for_server(triton + TRITON_AND_KSERVE.replace("KSERVE", kserve), server), server.url)
    for client in ("triton", "triton_json", "kserve", "kserve_binary"):
        assert known(found[client]) == of(scores), client
    assert found["ids"] == ["r-1", "r-2"]
    assert found["ready"] == [True, True, True, True, False, False]
    assert found["kserve_ready"] == [True, True, True, False]
    assert found["server"] == ["binary_tensor_data"]
    assert found["model"].items() >= {"name": "driver_ranker", "versions": ["2"]}.items()
    assert [each["name"] for each in found["model"]["outputs"]] == ["prediction", "reason"]
    assert found["errors"] == [
        ["422", "Unknown column 'other'. Expected columns: `driver_id`."],
        ["404", "'other' is not served here. This server serves 'driver_ranker/2'."],
        ["401", KEY_NEEDED],
    ]
    kind, status, message = found["kserve_error"]
    assert (kind, status) == ("HTTPStatusError", 401)
    assert message.startswith(KEY_NEEDED)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="MLServer 1.7 is for Python up to 3.12")
def test_the_types_and_codecs_of_mlserver(server: ApiServer, scores: dict[int, float | None]) -> None:
    found = run_script(for_server(code_blocks("clients.md", "MLServer")["python"] + MLSERVER, server))
    assert known(found["mlserver"]) == of(scores)
    assert (found["version"], found["reason"]) == ("2", [[""]])
    assert found["metadata"]["inputs"] == [{"name": "driver_id", "datatype": "INT64", "shape": [-1]}]
    assert found["error"].startswith("Expected `object`, got `array`")


ARROW, PARQUET = "application/vnd.apache.arrow.stream", "application/vnd.apache.parquet"


def send_table(server: ApiServer, body: bytes, media: str, accept: str) -> httpx.Response:
    response = server.ask(body, "/scores", **{"Content-Type": media, "Accept": accept})
    assert response.status_code == 200, response.text
    return response


def arrow_stream(drivers: list[int]) -> bytes:
    table, sink = pa.table({"driver_id": drivers}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def test_the_documented_arrow_client_gets_the_scores(server: ApiServer, scores: dict[int, float | None]) -> None:
    names: dict[str, Any] = {}
    exec(for_server(code_blocks("clients.md", "Tables")["python"], server), names)  # noqa: S102 - our own page
    assert names["table"].to_pydict() == {
        "driver_id": [1001, 1002, UNKNOWN_DRIVER],
        "prediction": [scores[1001], scores[1002], None],
        "reason": [None, None, "not_found"],
    }


def test_pandas_gets_the_scores_as_parquet_csv_and_lines(server: ApiServer, scores: dict[int, float | None]) -> None:
    entities = pandas.DataFrame({"driver_id": [*scores]})
    requests = {
        PARQUET: entities.to_parquet(),
        "text/csv": entities.to_csv(index=False).encode(),
        "application/x-ndjson": entities.to_json(orient="records", lines=True).encode(),
    }
    for media, body in requests.items():
        parquet = pandas.read_parquet(io.BytesIO(send_table(server, body, media, PARQUET).content))
        text = send_table(server, body, media, "text/csv").content
        csv = pandas.read_csv(io.BytesIO(text), float_precision="round_trip")
        lines = pandas.read_json(
            io.BytesIO(send_table(server, body, media, "application/jsonl").content), lines=True, precise_float=True
        )
        for answer in (parquet, csv, lines.rename(columns={"score": "prediction"})):
            found = {int(row.driver_id): row.prediction for row in answer.itertuples()}
            assert {driver: None if math.isnan(score) else score for driver, score in found.items()} == scores
            assert answer["reason"].tolist()[-1] == "not_found"


def test_a_large_table_equals_json_in_parts(server: ApiServer) -> None:
    drivers = [1001 + place % 25 for place in range(20_000)]  # some of them are unknown
    expected = []
    for start in range(0, len(drivers), 1000):
        body = json.dumps({"request_id": "r", "driver_ids": drivers[start : start + 1000]}).encode()
        expected += [(row["score"], row["reason"]) for row in server.ask(body, "/scores").json()["scores"]]
    answer = send_table(server, arrow_stream(drivers), ARROW, ARROW)
    table = pa.ipc.open_stream(answer.content).read_all()
    assert table["driver_id"].to_pylist() == drivers
    assert list(zip(table["prediction"].to_pylist(), table["reason"].to_pylist(), strict=True)) == expected
