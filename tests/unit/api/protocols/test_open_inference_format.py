"""The Open Inference Protocol: tensors in JSON and in binary, and its routes with a fake model."""

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient

from api.app import create_app
from api.errors import InvalidRequest, RequestError
from api.model.loading import Target
from api.model.model_slot import Served
from api.model.request_schema import EntityRequest, RequestSchema
from api.model.scorer import RowScores
from api.protocols.open_inference_format import OpenInferenceFormat
from api.protocols.tensors import DTYPES
from api.protocols.wire_format import Call
from api.telemetry.request_context import RequestContext
from scoring.errors import RegistryUnreachable
from scoring.feast_plugins.join_keys import JoinKey
from scoring.models.outputs import OutputColumn, Outputs, OutputType
from scoring.secret import Secret
from scoring.settings import Settings
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeLoader, FakeScorer, features

INFER = "/v2/models/ranker/infer"
KEY = "0123456789abcdef"
LINK = features(
    JoinKey("customer_id", "string"),
    JoinKey("merchant_id", "int32"),
    request_inputs={"amount": pa.float64(), "items": pa.int64(), "known": pa.bool_(), "note": pa.string()},
)
SERVED = Served(Target(FakeScorer().version, "d"), FakeScorer(link=LINK), RequestSchema("ranker/1", LINK, 50))
FORMAT = OpenInferenceFormat(Settings(model_name="ranker", max_entities=50))
DATATYPES = {"customer_id": "BYTES", "amount": "FP64", "items": "INT64", "known": "BOOL", "note": "BYTES"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=5)
ROW = st.fixed_dictionaries(
    {
        "customer_id": st.text(st.characters(codec="utf-8"), min_size=1, max_size=5),
        "merchant_id": st.integers(-128, 127),
        "amount": st.floats(allow_nan=False, allow_infinity=False, width=32),
        "items": st.integers(-(2**63), 2**63 - 1),
        "known": st.booleans(),
        "note": TEXT,
    }
)


class Recorder:
    """In place of `Scoring`: keeps the request, and scores each row with 0.5."""

    def current(self, _: RequestContext) -> Served:
        return SERVED

    async def score(self, _served: Served, request: EntityRequest, _context: RequestContext) -> RowScores:
        self.request = request
        return RowScores([[0.5] * request.rows], [None] * request.rows)


def decoded(body: bytes, json_size: int | None = None) -> EntityRequest:
    """Return the request in a body."""
    headers = {} if json_size is None else {b"inference-header-content-length": b"%d" % json_size}
    recorder = Recorder()
    call = Call({"name": "ranker"}, headers, body, RequestContext(), asyncio.Event().wait)
    answer = FORMAT.respond(call, recorder)  # type: ignore[arg-type]
    with pytest.raises(StopIteration) as stop:
        answer.send(None)
    assert stop.value.value.status == 200
    return recorder.request


def tensor(name: str, datatype: str, values: list[Any], *, binary: bool, column: bool) -> tuple[dict[str, Any], bytes]:
    """Return an input tensor of shape [n] or [n, 1], and its binary data."""
    given: dict[str, Any] = {"name": name, "datatype": datatype, "shape": [len(values), *([1] if column else [])]}
    if not binary:
        return given | {"data": [[value] for value in values] if column else values}, b""
    if datatype == "BYTES":
        data = b"".join(struct.pack("<I", len(value.encode())) + value.encode() for value in values)
    else:
        data = np.array(values, DTYPES[datatype]).tobytes()
    return given | {"parameters": {"binary_data_size": len(data)}}, data


@st.composite
def bodies(draw: st.DrawFn) -> tuple[list[dict[str, Any]], bytes, int]:
    """Rows, and a body with them: each tensor in JSON or in binary. The size of its JSON."""
    rows = draw(st.lists(ROW, min_size=1, max_size=8))
    tensors = [
        tensor(
            name,
            DATATYPES.get(name) or draw(st.sampled_from(["INT8", "INT16", "INT32", "INT64"])),
            [row[name] for row in rows],
            binary=draw(st.booleans()),
            column=draw(st.booleans()),
        )
        for name in draw(st.permutations(list(rows[0])))
    ]
    head = json.dumps({"id": "r", "inputs": [each for each, _ in tensors]}).encode()
    return rows, head + b"".join(data for _, data in tensors), len(head)


@given(bodies())
def test_tensors_in_json_and_in_binary_are_the_request_that_the_same_rows_are_in_json(
    made: tuple[list[dict[str, Any]], bytes, int],
) -> None:
    rows, body, json_size = made
    in_json = SERVED.schema.decode(msgspec.json.encode({"request_id": "r", "entity_rows": rows}))

    assert decoded(body, json_size) == in_json


@given(bodies(), st.data())
def test_a_corrupt_body_is_the_clients_error_or_another_request(
    made: tuple[list[dict[str, Any]], bytes, int], data: st.DataObject
) -> None:
    _, body, json_size = made
    at = data.draw(st.integers(0, len(body)))
    cut = data.draw(st.integers(0, 12))
    corrupt = body[:at] + data.draw(st.binary(max_size=12)) + body[at + cut :]
    with contextlib.suppress(RequestError):
        decoded(corrupt, data.draw(st.sampled_from([None, json_size, json_size + 1, at])))


def request(**changes: Any) -> bytes:
    """Return the JSON of a valid request for FakeScorer with some of its input's members changed."""
    given = {"name": "driver_id", "shape": [2], "datatype": "INT64", "data": [1, 2]} | changes
    return json.dumps({"inputs": [{name: value for name, value in given.items() if value is not None}]}).encode()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient[Any]]:
    with api(max_entities=3) as started:
        yield when_ready(started)


def error(response: Any, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"  # KServe's client compares it
    assert response.json()["instance"].startswith("urn:uuid:")
    assert set(response.json()) == {"error", "instance"}
    return str(response.json()["error"])


def test_the_outputs_are_the_prediction_and_the_reason(client: TestClient[Any]) -> None:
    response = client.post(INFER, content=request(data=[7, -1]), headers={"X-Request-Id": "r-1"})
    assert response.json() == {
        "model_name": "ranker",
        "model_version": "1",
        "id": "r-1",
        "outputs": [
            {"name": "prediction", "datatype": "FP64", "shape": [2], "data": [7.0, None]},
            {"name": "reason", "datatype": "BYTES", "shape": [2], "data": ["", "not_found"]},
        ],
    }
    assert (response.headers["X-Request-Id"], response.headers["X-Model-Version"]) == ("r-1", "ranker/1")
    assert response.headers["Content-Type"] == "application/json"


def test_a_request_selects_and_orders_outputs_and_their_form(client: TestClient[Any]) -> None:
    body = json.loads(request(data=[7, -1])) | {
        "id": "ü",
        "model_name": "ignored",
        "parameters": {"binary_data_output": True, "priority": 1},
        "outputs": [{"name": "reason", "parameters": {"binary_data": False}}, {"name": "prediction"}],
    }
    response = client.post("/v2/models/ranker/versions/1/infer", json=body)
    size = int(response.headers["Inference-Header-Content-Length"])
    head = json.loads(response.content[:size])
    assert response.headers["Content-Type"] == "application/octet-stream"
    assert head["id"] == "ü"
    assert [each["name"] for each in head["outputs"]] == ["reason", "prediction"]
    assert head["outputs"][0]["data"] == ["", "not_found"]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 16}
    np.testing.assert_array_equal(np.frombuffer(response.content[size:], "<f8"), [7.0, np.nan])


@pytest.mark.parametrize(
    ("kind", "value", "datatype", "data", "binary"),
    [
        ("double", 0.5, "FP64", [0.5, None], struct.pack("<dd", 0.5, float("nan"))),
        ("int64", -3, "INT64", [-3, 0], struct.pack("<qq", -3, 0)),
        ("bool", True, "BOOL", [True, False], b"\1\0"),
        ("string", "ä", "BYTES", ["ä", ""], b"\2\0\0\0\xc3\xa4\0\0\0\0"),
    ],
)
def test_each_type_of_output_in_json_and_in_binary(
    kind: OutputType, value: Any, datatype: str, data: list[Any], binary: bytes
) -> None:
    outputs = Outputs((OutputColumn("a", kind), OutputColumn("b", kind)))
    scorer = FakeScorer(outputs=outputs, function=lambda _: [((value, value), None), (None, "stale")])
    with api(scorer) as client:
        when_ready(client)
        metadata = client.get("/v2/models/ranker").json()
        plain = client.post(INFER, content=request()).json()["outputs"]
        wanted = {"outputs": [{"name": "prediction_b", "parameters": {"binary_data": True}}]}
        packed = client.post(INFER, json=json.loads(request()) | wanted)
    names = ["prediction_a", "prediction_b", "reason"]
    assert [each["name"] for each in metadata["outputs"]] == [each["name"] for each in plain] == names
    assert metadata["outputs"][1] == {"name": "prediction_b", "datatype": datatype, "shape": [-1]}
    assert plain[1] == {"name": "prediction_b", "datatype": datatype, "shape": [2], "data": data}
    assert packed.content.endswith(b"}]}" + binary)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"{", "The body is not valid JSON"),
        (b"", "The body is not valid JSON: it is empty"),
        (b'{"inputs":[' * 9000, "The body is not valid JSON"),
        (b'{"x":' + b"[" * 9000 + b"]" * 9000 + b',"inputs":[]}', "nested too deeply"),
        (b'{"inputs":[],"x":' + b"1" * 9000 + b"}", "Missing column 'driver_id'"),
        (request(data=[1, float("nan")]), "The body is not valid JSON"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "Object missing required field `inputs`"),
        (b'{"inputs":[], "inputs":[]}', "Duplicate JSON member 'inputs'"),
        (request()[:-3] + b',"data":[3, 4]}]}', "Duplicate JSON member 'data'"),
        (request(data=None)[:-3] + b',"datatype":"INT64"}]}', "Duplicate JSON member 'datatype'"),
        (request()[:-1] + b',"x":"\xff"}', "not valid JSON: byte 91 is not UTF-8"),
        (b'{"inputs":[]}', "Missing column 'driver_id'"),
        (request(name="x"), "Unknown column 'x'. Expected columns: `driver_id`."),
        (request(name=3), "Expected `string`, got `integer` - at `$.inputs[0].name`"),
        (b'{"inputs":[%b,%b]}' % ((request()[12:-2],) * 2), "Duplicate column 'driver_id'"),
        (request(datatype="FLOAT"), "Tensor 'driver_id': Unknown datatype 'FLOAT', expected one of BOOL, INT8,"),
        (request(shape=[3]), "Tensor 'driver_id': Its shape [3] needs 3 elements, got 2"),
        (
            request(shape=[2**62]),
            "Tensor 'driver_id': Its shape [4611686018427387904] needs 4611686018427387904 elements",
        ),
        (request(shape=[10**4300 - 1]), "Expected `integer` <= 9223372036854775807 - at `$.inputs[0].shape[0]`"),
        *(
            (request(shape=shape), "Tensor 'driver_id': Expected shape [n] or [n, 1], got ")
            for shape in ([], [2, 2], [1, 2], [-2], [2, 1, 1])
        ),
        (request(shape=[2, 1], data=[[1], 2]), "Expected `integer | null`, got `array` - at `$[0]` of `data`"),
        (request(data=[[1], [2]]), "Expected `integer | null`, got `array`"),
        (request(data=[1, "2"]), "Tensor 'driver_id': Expected `integer | null`, got `string` - at `$[1]` of `data`"),
        (request(data=["NaN", 1], datatype="FP64"), "Expected `number | null`, got `string` - at `$[0]`"),
        (request(data=[1, True]), "Expected `integer | null`, got `boolean`"),
        (request(data=[1, 300], datatype="INT8"), "Expected `integer` <= 127 - at `$[1]`"),
        (request(data=[1, 1e39], datatype="FP32"), "Column 'driver_id', row 0: Expected `integer`, got `number`"),
        (request(data=[1, None]), "Column 'driver_id', row 1: Expected `integer`, got `null`"),
        (request(data=[1.0, 2.0], datatype="FP64"), "Column 'driver_id', row 0: Expected `integer`, got `number`"),
        (request(data=["1", "2"], datatype="BYTES"), "Column 'driver_id', row 0: Expected `integer`, got `string`"),
        (request(shape=[0], data=[]), "Expected 1 to 3 rows, got 0"),
        (request(shape=[4], data=[1] * 4), "Expected 1 to 3 rows, got 4"),
        (request(data=None), "Tensor 'driver_id': Expected either `data` or the parameter `binary_data_size`"),
        (request(parameters={"binary_data_size": 16}), "Tensor 'driver_id': Expected either `data` or"),
        (request(data=None, parameters={"binary_data_size": 16}), "binary_data_size is 16, but only 0 bytes"),
        (request()[:-1] + b',"outputs":[{"name":"score"}]}', "'score': The model's outputs are prediction, reason"),
        (request()[:-1] + b',"outputs":[{"name":"reason"},{"name":"reason"}]}', "'reason': It is requested twice"),
        (
            request()[:-1] + b',"outputs":[{"name":"prediction","parameters":{"classification":2}}]}',
            "Tensor 'prediction': The extensions for classification and shared memory are not supported",
        ),
        (request()[:-1] + b',"id":"%b"}' % (b"i" * 129), "Expected `string` of length <= 128 - at `$.id`"),
    ],
)
def test_each_invalid_request_in_json_is_refused_with_a_message_that_names_the_place(
    client: TestClient[Any], body: bytes, problem: str
) -> None:
    response = client.post(INFER, content=body)
    status = 400 if "not valid JSON" in response.text else 422
    assert problem in error(response, status)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "size", "problem"),
    [
        ("INT64", [2], b"0" * 16, 17, "Its binary_data_size is 17, but only 16 bytes of the body are left"),
        ("INT64", [2], b"0" * 16, -1, "Its binary_data_size is -1, but only 16 bytes of the body are left"),
        ("INT64", [2], b"0" * 17, 17, "Its shape [2] and datatype INT64 need 16 bytes, got 17"),
        ("INT64", [2], b"0" * 17, 16, "1 bytes follow the binary data of the last tensor"),
        ("INT64", [2**62], b"0" * 16, 16, "datatype INT64 need 36893488147419103232 bytes"),
        ("BOOL", [2], b"\0\2", 2, "Expected each BOOL byte to be 0 or 1"),
        *(
            ("BYTES", shape, data, len(data), "each with its length in four bytes before it")
            for shape, data in (
                ([1], b"\1\0"),
                ([1], b"\2\0\0\0a"),
                ([1], b"\1\0\0\0ab"),
                ([2], b"\1\0\0\0a"),
                ([2**62], b"\1\0\0\0a"),
                ([1], b"\xff\xff\xff\xffa"),
            )
        ),
        ("BYTES", [1], b"\1\0\0\0\xff", 5, "Element 0 is not UTF-8"),
    ],
)
def test_each_inconsistent_binary_tensor_is_refused_by_its_name(
    client: TestClient[Any], datatype: str, shape: list[int], data: bytes, size: int, problem: str
) -> None:
    head = request(datatype=datatype, shape=shape, data=None, parameters={"binary_data_size": size})
    response = client.post(INFER, content=head + data, headers={"Inference-Header-Content-Length": str(len(head))})
    assert (found := error(response, 422)).startswith("Tensor 'driver_id': ")
    assert problem in found


@pytest.mark.parametrize("length", ["-1", "1e2", "", "9" * 5000, "1000", "+5"])
def test_the_size_of_the_json_must_be_one(client: TestClient[Any], length: str) -> None:
    response = client.post(INFER, content=request(), headers={"Inference-Header-Content-Length": length})
    assert "Inference-Header-Content-Length can't be used" in error(response, 400)


def test_nan_in_a_tensor_is_an_unknown_value_and_integers_come_as_floats_without_loss() -> None:
    rows = {"customer_id": ["a", "b"], "merchant_id": [1, 2], "known": [True, None], "note": ["", None]}
    inputs = [tensor(n, DATATYPES.get(n, "UINT8"), values, binary=False, column=False) for n, values in rows.items()]
    inputs.append(tensor("amount", "FP32", [0.1, float("nan")], binary=True, column=False))
    inputs.append(tensor("items", "FP64", [3.0, float("nan")], binary=True, column=True))
    head = json.dumps({"inputs": [each for each, _ in inputs]}).encode()
    found = decoded(head + b"".join(data for _, data in inputs), len(head))
    assert found.entity_rows == rows | {"amount": [float(np.float32(0.1)), None], "items": [3, None]}
    in_json = head.replace(b'"parameters": {"binary_data_size": 8}', b'"data": [0.1, null]')
    assert decoded(in_json + inputs[-1][1], len(in_json)).entity_rows == found.entity_rows
    fraction = head + inputs[-2][1] + np.array([0.5, 1.0]).tobytes()
    with pytest.raises(InvalidRequest, match="Column 'items', row 0: Expected `integer"):
        decoded(fraction, len(head))


def test_metadata_and_health_need_no_key_and_inference_does() -> None:
    link = features(JoinKey("id", "string"), request_inputs={"at": pa.timestamp("us", "UTC"), "x": pa.float32()})
    types = {"id": "BYTES", "at": "BYTES", "x": "FP32"}
    scorer = FakeScorer(7, link=link, function=lambda _: [(0.5, None)])
    with api(scorer, api_keys=(Secret(KEY),)) as client:
        when_ready(client)
        server = client.get("/v2").json()
        assert server.items() >= {"name": "model-serving", "extensions": ["binary_tensor_data"]}.items()
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        for path in ("/v2/models/ranker", "/v2/models/ranker/versions/7"):
            assert client.get(f"{path}/ready").json() == {"name": "ranker", "ready": True}
            assert client.get(path).json() == {
                "name": "ranker",
                "versions": ["7"],
                "platform": "mlflow",
                "inputs": [{"name": name, "datatype": each, "shape": [-1]} for name, each in types.items()],
                "outputs": [
                    {"name": "prediction", "datatype": "FP64", "shape": [-1]},
                    {"name": "reason", "datatype": "BYTES", "shape": [-1]},
                ],
            }
        assert "An API key is required" in error(client.post(INFER, content=b"{}"), 401)
        rows = {"id": ["a"], "at": ["2026-01-31T12:00:00Z"], "x": [1]}
        inputs = [{"name": n, "datatype": types[n], "shape": [1], "data": values} for n, values in rows.items()]
        response = client.post(INFER, json={"inputs": inputs}, headers={"Authorization": f"Bearer {KEY}"})
        assert response.json()["outputs"][0]["data"] == [0.5]


def test_another_model_or_version_is_an_error_that_names_what_serves(client: TestClient[Any]) -> None:
    for path, model in (("other", "other"), ("ranker/versions/9", "ranker/9"), ("ranker/versions/01", "ranker/01")):
        for response in (
            client.get(f"/v2/models/{path}"),
            client.get(f"/v2/models/{path}/ready"),
            client.post(f"/v2/models/{path}/infer", content=request()),
        ):
            found = error(response, 404)
            assert found == f"{model!r} is not served here. This server serves 'ranker/1'."


def test_every_error_has_the_form_of_the_protocol(client: TestClient[Any]) -> None:
    for path in ("/v2/nothing", "/v2/models", "/v2/repository/index"):
        assert "POST /v2/models/{name}/infer" in error(client.get(path), 404)
    response = client.get(INFER)
    assert "POST" in error(response, 405)
    assert response.headers["Allow"] == "POST, OPTIONS"
    error(client.delete("/v2/health/live"), 405)
    error(client.post(INFER, content=request(), headers={"Content-Type": "text/csv"}), 415)
    error(client.post(INFER, content=request(), headers={"Content-Encoding": "gzip"}), 415)
    with api(max_body_bytes=64) as small:
        error(when_ready(small).post(INFER, content=b"1" * 65), 413)
    loader = FakeLoader()
    loader.poll_error = RegistryUnreachable("http://mlflow", "refused")
    with TestClient(create_app(Settings(model_name="ranker"), loader)) as empty:
        for path in ("health/ready", "models/ranker", "models/ranker/ready"):
            found = empty.get(f"/v2/{path}")
            assert "No model version serves yet" in error(found, 503)
            assert int(found.headers["Retry-After"]) > 0
        error(empty.post(INFER, content=request()), 503)
