"""Responses of the API to valid and invalid requests, with a fake model."""

import datetime as dt
import json
import threading
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from api.errors import InvalidRequest
from api.http.messages import headers_of
from api.model.request_schema import RequestSchema
from api.model.store_health import OPENS_AFTER
from scoring.errors import EntityRowsError, FeaturesRejected, FeatureStoreError, PredictionFailed, UnusableFeature
from scoring.feast_plugins.join_keys import JoinKey
from scoring.models.outputs import OutputColumn, Outputs, OutputType
from scoring.online.reading import request_column
from scoring.secret import Secret
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeScorer, features

CORPUS = sorted((Path(__file__).resolve().parents[4] / "tests" / "corpus").glob("[0-9]*/*"))
JSON = {"Content-Type": "application/json"}
KEY = "0123456789abcdef"
LISTS = " (one value for all entities, or a list; at least one list) or "
TWO_NAMES, INPUT_NAMES = "`customer_id`, `merchant_id`", "`driver_id`, `amount`"
TWO_KEYS = (JoinKey("customer_id", "string"), JoinKey("merchant_id", "int32"))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient[Any]]:
    with api() as started:
        yield when_ready(started)


def assert_problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:model-serving:problem:")
    assert problem["instance"].startswith("urn:uuid:")
    assert problem["title"]
    assert problem["detail"]
    return problem


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: f"{file.parent.name}-{file.name}")
@pytest.mark.parametrize("path", ["/inference", "/scores"])
def test_each_body_of_the_corpus_gets_its_documented_status(client: TestClient[Any], file: Path, path: str) -> None:
    response = client.post(path, content=file.read_bytes(), headers=JSON)
    status = int(file.parent.name)
    if status == 200:
        assert response.status_code == 200, response.text
        assert "X-Evil" not in response.headers
    else:
        assert_problem(response, status)


@pytest.mark.parametrize(
    ("header", "value", "problem"),
    [
        *(("Content-Type", each, "not-json") for each in ("", "text/plain", "application/xml", "multipart/form-data")),
        ("Content-Type", "application/x-www-form-urlencoded", "not-json"),
        ("Content-Type", "application/json; charset=utf-8", None),
        *(("Content-Encoding", each, "body-encoded") for each in ("gzip", "GZIP", "br", "identity, gzip", "x-unknown")),
        ("Content-Encoding", "Identity", None),
        ("Host", "a/b", "bad-request"),
        *(("Host", each, None) for each in ("testserver", "api.example.org:8172", "[::1]:8172", "a_b", "x,y", "")),
    ],
)
@pytest.mark.parametrize("path", ["/inference", "/inference/"])
def test_headers_that_are_accepted_and_headers_that_are_refused(
    client: TestClient[Any], path: str, header: str, value: str, problem: str | None
) -> None:
    body = b'{"request_id":"r","driver_ids":[1]}'
    response = client.post(path, content=body, headers=JSON | {header: value})
    if problem is None:
        assert response.status_code == 200, response.text
        assert response.headers["Content-Type"] == "application/json"
        assert (response.headers["X-Request-Id"], response.headers["X-Model-Version"]) == ("r", "ranker/1")
        return
    status = {"bad-request": 400}.get(problem, 415)
    assert assert_problem(response, status)["type"].endswith(f":{problem}")
    assert response.headers.get("Accept-Encoding") == ("identity" if problem == "body-encoded" else None)


def test_a_body_without_a_content_type_is_refused(client: TestClient[Any]) -> None:
    response = client.post("/inference", content=b'{"request_id":"r","driver_ids":[1]}')
    assert "Content-Type" not in response.request.headers
    assert assert_problem(response, 415)["type"].endswith(":not-json")


def test_a_body_beyond_the_limit_is_refused_with_or_without_a_content_length() -> None:
    with api(max_body_bytes=64) as small:
        when_ready(small)
        assert_problem(small.post("/inference", content=b"1" * 65, headers=JSON), 413)
        parts = iter([b"1" * 40, b"1" * 40])
        assert_problem(small.post("/inference", content=parts, headers=JSON), 413)


def test_unknown_paths_and_methods_are_problems_that_name_what_exists(client: TestClient[Any]) -> None:
    for path in ("/nothing", "/inferences", "/static/swagger-ui/nothing.js", "/webhooks/mlflow"):
        problem = assert_problem(client.get(path), 404)
        routes = problem["detail"].removeprefix("No route has this path. The routes are ").removesuffix(".").split(", ")
        assert {"POST /inference", "POST /scores", "GET /ready", "GET /v2/models/{name}"} < set(routes)
        assert not any("/static" in route for route in routes)
    for method, path, allowed in (("GET", "/inference", {"POST"}), ("DELETE", "/live", {"GET"})):
        response = client.request(method, path)
        assert all(name in assert_problem(response, 405)["detail"] for name in allowed)
        assert allowed < set(response.headers["Allow"].split(", ")) <= allowed | {"OPTIONS"}


@pytest.mark.parametrize("name", ["%00", "a" * 300, "a/" * 3000, "swagger-ui/swagger-ui.css%00.html", "../app.py", ""])
def test_the_page_has_no_other_files(client: TestClient[Any], name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404
    assert client.get("/static/swagger-ui/swagger-ui.css").status_code == 200


def test_a_problem_has_the_reasons_if_every_entity_is_excluded(client: TestClient[Any]) -> None:
    response = client.post("/inference", json={"request_id": "r-7", "driver_ids": [-1, -2]})
    problem = assert_problem(response, 422)
    assert problem["excluded"] == [
        {"driver_id": -1, "reason": "not_found"},
        {"driver_id": -2, "reason": "not_found"},
    ]
    assert problem["request_id"] == response.headers["X-Request-Id"] == "r-7"
    scores = client.post("/scores", json={"request_id": "r", "driver_ids": [-1]})
    assert scores.json()["scores"] == [{"driver_id": -1, "score": None, "reason": "not_found"}]


@settings(max_examples=50)
@given(ids=st.lists(st.integers(-50, 1000), min_size=1, max_size=20), data=st.data())
def test_the_prediction_has_the_highest_score_and_the_order_of_entities_changes_no_score(
    client: TestClient[Any], ids: list[int], data: st.DataObject
) -> None:
    rows = client.post("/scores", json={"request_id": "r", "driver_ids": ids}).json()["scores"]
    assert [row["driver_id"] for row in rows] == ids
    shuffled = data.draw(st.permutations(rows))
    again = client.post("/scores", json={"request_id": "r", "driver_ids": [row["driver_id"] for row in shuffled]})
    assert again.json()["scores"] == shuffled
    answer = client.post("/inference", json={"request_id": "r", "driver_ids": ids})
    scores = [row["score"] for row in rows if row["score"] is not None]
    if scores:
        assert answer.json()["score"] == max(scores)
        assert answer.json()["prediction"] == next(row for row in rows if row["score"] == max(scores))["driver_id"]
    else:
        assert answer.status_code == 422


@settings(max_examples=200)
@given(body=st.binary(max_size=200))
def test_no_body_causes_an_internal_error(client: TestClient[Any], body: bytes) -> None:
    assert client.post("/inference", content=body, headers=JSON).status_code in {200, 400, 422}


def test_entity_rows_have_several_keys_and_request_inputs() -> None:
    link = features(*TWO_KEYS, request_inputs={"amount": pa.float32()})
    rows = [
        {"customer_id": "a", "merchant_id": 1, "amount": 2},
        {"customer_id": "b", "merchant_id": 2, "amount": None},
    ]
    scorer = FakeScorer(link=link, function=lambda rows: [(a, None if a else "null_feature") for a in rows["amount"]])
    with api(scorer) as client:
        when_ready(client)
        answer = client.post("/inference", json={"request_id": "r", "entity_rows": rows})
        assert answer.json()["prediction"] == {"customer_id": "a", "merchant_id": 1}
        assert answer.json()["excluded"] == [{"customer_id": "b", "merchant_id": 2, "reason": "null_feature"}]
        wrong: list[Any] = [
            [],
            [{}],
            [{"customer_id": "a", "merchant_id": 1}],
            [rows[0] | {"merchant_id": 2**31}],
            [rows[0] | {"amount": 1e39}],
            [rows[0] | {"amount": "2"}],
            [rows[0] | {"customer_id": ""}],
            [rows[0] | {"more": 1}],
        ]
        for entity_rows in wrong:
            assert_problem(client.post("/scores", json={"request_id": "r", "entity_rows": entity_rows}), 422)
        row = b'{"customer_id":"a","customer_id":"b","merchant_id":1,"amount":1}'
        repeated = b'{"request_id":"r","entity_rows":[' + row + b"]}"
        assert_problem(client.post("/scores", content=repeated, headers=JSON), 422)


def test_a_single_key_may_come_as_a_list_or_in_entity_rows(client: TestClient[Any]) -> None:
    ids = [3, -1, 5]
    bodies = [{"driver_ids": ids}, {"entity_rows": [{"driver_id": each} for each in ids]}]
    for path in ("/inference", "/scores"):
        by_ids, by_rows = (client.post(path, json={"request_id": "r"} | body) for body in bodies)
        assert by_ids.status_code == 200
        assert by_ids.content == by_rows.content


@pytest.mark.parametrize(
    ("keys", "inputs", "listed", "members"),
    [
        ((), {}, "either `driver_ids` (a list of keys) or ", "`driver_id`"),
        (TWO_KEYS, {}, f"either `customer_id` or `customer_ids`, `merchant_id` or `merchant_ids`{LISTS}", TWO_NAMES),
        ((), {"amount": pa.int32()}, f"either `driver_id` or `driver_ids`, `amount` or `amounts`{LISTS}", INPUT_NAMES),
        ((JoinKey("entity_row", "int64"),), {}, "", "`entity_row`"),
        (
            (JoinKey("a", "int64"), JoinKey("as", "string")),
            {},
            f"either `a` (no list, because `as` is another member), `as` or `ass`{LISTS}",
            "`a`, `as`",
        ),
    ],
    ids=["one key", "two keys", "request input", "key that makes entity_rows", "key that is the list of another"],
)
def test_a_422_names_the_expected_members_and_has_a_request_that_works(
    keys: tuple[JoinKey, ...], inputs: dict[str, pa.DataType], listed: str, members: str
) -> None:
    link = features(*keys, request_inputs=inputs)
    names = [key.name for key in link.join_keys]
    with api(FakeScorer(link=link, function=lambda rows: [(1.0, None) for _ in rows[names[0]]])) as client:
        when_ready(client)
        for body in ({"keys": [1]}, {"request_id": "r"}, {"request_id": "", "entity_rows": [{}]}, [], 1):
            problem = assert_problem(client.post("/inference", json=body), 422)
            expected = f"`request_id`, and {listed}`entity_rows` (a list of objects with {members})"
            assert problem["detail"].endswith(f". Expected members: {expected}. Optional: `top`.")
            assert client.post("/inference", json=problem["example"]).status_code == 200
        document = client.get("/openapi.json").json()
        body = document["paths"]["/inference"]["post"]["requestBody"]["content"]["application/json"]
        assert body["example"] == problem["example"]


@pytest.mark.parametrize("inputs", [{}, {"amount": pa.float64(), "at": pa.timestamp("ns")}])
def test_only_callers_with_an_api_key_see_real_values_in_the_example(inputs: dict[str, pa.DataType]) -> None:
    link = features(request_inputs=inputs)
    scorer = FakeScorer(link=link)
    scorer.keys = {"driver_id": [71, 72]}
    scorer.input_example = pa.table({"amount": [12.25], "at": pa.array([0], pa.timestamp("ns"))})
    authorized = {"Authorization": f"Bearer {KEY}"}

    def example(headers: dict[str, str]) -> Any:
        document = client.get("/openapi.json", headers=headers).json()
        return document["paths"]["/scores"]["post"]["requestBody"]["content"]["application/json"]["example"]

    with api(scorer, api_keys=(Secret(KEY),)) as client:
        when_ready(client)
        problem = client.post("/scores", json={}, headers=authorized).json()
        assert problem["example"] == example(authorized)
        at = "2026-01-31T12:00:00Z"
        more = {"amount": 12.25, "at": at}, {"amount": 0.5, "at": at}
        real, made_up = more if inputs else ({}, {})
        assert example(authorized) == {"request_id": "uuid-1", "driver_ids": [71, 72]} | real
        assert example({}) == {"request_id": "uuid-1", "driver_ids": [1001, 1002]} | made_up


@pytest.mark.parametrize("dtype", [pa.int32(), pa.int64()])
@pytest.mark.parametrize(
    ("sent", "read"),
    [("1", 1), ("1.0", 1), ("1e2", 100), ("-0.0", 0), ("null", None)]
    + [(wrong, ...) for wrong in ("1.5", '"1"', "true", "1e300", "9007199254740993.0", "1" + "0" * 30)],
)
def test_an_integer_request_input_may_have_a_zero_fraction(dtype: pa.DataType, sent: str, read: Any) -> None:
    schema = RequestSchema("m/1", features(request_inputs={"n": dtype}), 10)
    body = b'{"request_id":"r","entity_rows":[{"driver_id":1,"n":%b}]}' % sent.encode()
    if read is ...:
        with pytest.raises(InvalidRequest, match=r"Expected `(integer|number)[^`]*`.* - at `\$\.entity_rows\[0\]\.n`"):
            schema.decode(body)
        return
    (value,) = schema.decode(body).entity_rows["n"]
    assert (value, type(value)) == (read, type(read))


@pytest.mark.parametrize(
    ("dtype", "sent", "says"),
    [
        (pa.string(), b"1", "Expected `string | null`, got `integer` - at `$.entity_rows[0].str`"),
        (pa.bool_(), b"0.0", "Expected `boolean | null`, got `number` - at `$.entity_rows[0].str`"),
        (pa.timestamp("ns"), b'"2026-01-01T00:00:00"', "Expected `date and time` with a timezone"),
        (pa.string(), b'"a","int":1', "unknown field `int` - at"),
    ],
)
def test_a_422_uses_the_type_names_of_json(dtype: pa.DataType, sent: bytes, says: str) -> None:
    schema = RequestSchema("m/1", features(request_inputs={"str": dtype}), 10)
    with pytest.raises(InvalidRequest) as caught:
        schema.decode(b'{"request_id":"r","entity_rows":[{"driver_id":1,"str":%b}]}' % sent)
    assert says in str(caught.value)


@pytest.mark.parametrize("dtype", [pa.timestamp("ns"), pa.timestamp("us", "UTC")])
def test_a_timestamp_beyond_the_range_of_batch_requests_is_refused(dtype: pa.DataType) -> None:
    for year in (1677, 2262):
        with pytest.raises(EntityRowsError, match=r"'at': dates and times between 1678 and 2261 are needed\.$"):
            request_column("at", {"at": [dt.datetime(year, 6, 1, tzinfo=dt.UTC)]}, dtype)


ENTITIES = [(None, "stale"), (0.5, None), (1e22, None), (1e22, "imputed_stale")]


@pytest.mark.parametrize(
    ("policy", "path", "expected"),
    [
        (
            "exclude",
            "/inference",
            b'{"request_id":"r","prediction":2,"score":1e22,"model":{"name":"ranker","version":1},'
            b'"excluded":[{"driver_id":4,"reason":"stale"}],"error":null}',
        ),
        (
            "impute",
            "/inference",
            b'{"request_id":"r","prediction":2,"score":1e22,"model":{"name":"ranker","version":1},'
            b'"excluded":[{"driver_id":4,"reason":"stale"}],"imputed":[{"driver_id":1,"reason":"stale"}],"error":null}',
        ),
        (
            "exclude",
            "/scores",
            b'{"request_id":"r","model":{"name":"ranker","version":1},"scores":['
            b'{"driver_id":4,"score":null,"reason":"stale"},{"driver_id":3,"score":0.5,"reason":null},'
            b'{"driver_id":2,"score":1e22,"reason":null}]}',
        ),
        (
            "impute",
            "/scores",
            b'{"request_id":"r","model":{"name":"ranker","version":1},"scores":['
            b'{"driver_id":4,"score":null,"reason":"stale"},{"driver_id":3,"score":0.5,"reason":null},'
            b'{"driver_id":2,"score":1e22,"reason":null},{"driver_id":1,"score":1e22,"reason":null}],'
            b'"imputed":[{"driver_id":1,"reason":"stale"}]}',
        ),
    ],
)
def test_the_exact_bytes_of_scores(policy: str, path: str, expected: bytes) -> None:
    rows = ENTITIES if policy == "impute" else ENTITIES[:3]
    with api(FakeScorer(function=lambda _: rows), missing_features=policy) as client:
        body = {"request_id": "r", "driver_ids": [4, 3, 2, 1][: len(rows)]}
        assert when_ready(client).post(path, json=body).content == expected


CLASSES = Outputs((OutputColumn("label", "string"), OutputColumn("no", "double"), OutputColumn("yes!", "double")))
PROBABILITIES = [(("no", 0.75, 0.25), None), (None, "stale"), (("yes!", 0.5, 0.5), None)]


def test_several_outputs_are_one_object_and_a_tag_chooses_the_one_to_rank_by() -> None:
    outputs = msgspec.structs.replace(CLASSES, rank_by=2)
    body = {"request_id": "r", "driver_ids": [4, 3, 2]}
    with api(FakeScorer(function=lambda _: PROBABILITIES, outputs=outputs)) as client:
        assert when_ready(client).post("/inference", json=body).content == (
            b'{"request_id":"r","prediction":2,"score":0.5,"outputs":{"label":"yes!","no":0.5,"yes!":0.5},'
            b'"model":{"name":"ranker","version":1},"excluded":[{"driver_id":3,"reason":"stale"}],"error":null}'
        )
        assert client.post("/scores", json=body).content == (
            b'{"request_id":"r","model":{"name":"ranker","version":1},"scores":['
            b'{"driver_id":4,"outputs":{"label":"no","no":0.75,"yes!":0.25},"reason":null},'
            b'{"driver_id":3,"outputs":null,"reason":"stale"},'
            b'{"driver_id":2,"outputs":{"label":"yes!","no":0.5,"yes!":0.5},"reason":null}]}'
        )
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        kinds = {name: member["type"] for name, member in schemas["Outputs"]["properties"].items()}
        assert kinds == {"label": "string", "no": "number", "yes!": "number"}
        assert "outputs" in schemas["Inference"]["required"]


@pytest.mark.parametrize(
    ("outputs", "values", "detail"),
    [
        (
            CLASSES,
            PROBABILITIES,
            "set the version's tag serving.rank_by to one of its outputs that are numbers ('no', ",
        ),
        (
            Outputs((OutputColumn("label", "string"),)),
            [("a", None), (None, "stale"), ("b", None)],
            "its outputs are not numbers (a classifier's tag serving.outputs may add predict_proba)",
        ),
    ],
)
def test_without_a_number_to_rank_by_inference_says_which_tag_to_set(
    outputs: Outputs, values: list[Any], detail: str
) -> None:
    body = {"request_id": "r", "driver_ids": [4, 3, 2]}
    with api(FakeScorer(function=lambda _: values, outputs=outputs)) as client:
        problem = assert_problem(when_ready(client).post("/inference", json=body), 422)
        assert problem["type"] == "urn:model-serving:problem:not-ranked"
        assert detail in problem["detail"]
        assert client.post("/scores", json=body).status_code == 200


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [("string", "gold", b'"gold"'), ("bool", True, b"true"), ("int64", 2**60, b"%d" % 2**60)],
)
def test_a_label_is_a_score_of_its_own_type(kind: OutputType, value: Any, written: bytes) -> None:
    outputs = Outputs((OutputColumn("label", kind),), rank_by=0 if kind == "int64" else None)
    with api(FakeScorer(function=lambda _: [(value, None)], outputs=outputs)) as client:
        answer = when_ready(client).post("/scores", json={"request_id": "r", "driver_ids": [1]})
        assert b'"scores":[{"driver_id":1,"score":%b,"reason":null}]' % written in answer.content


@pytest.mark.parametrize("path", ["/live", "/ready", "/v2/health/live", "/v2/models/ranker/versions/1/ready"])
def test_a_probe_is_logged_at_debug_only(client: TestClient[Any], path: str) -> None:
    with structlog.testing.capture_logs() as lines:
        assert client.get(path).status_code == 200
    assert [line["log_level"] for line in lines if line["event"] == "request"] == ["debug"]


def test_the_members_of_all_other_responses_in_order(client: TestClient[Any]) -> None:
    assert client.get("/live").content == b'{"live":true}'
    version = client.get("/version").content
    assert version.startswith(
        b'{"model":{"name":"ranker","version":1},"feature_service":"service","definitions":"definitions","mlflow":"'
    )
    assert json.loads(version)["mlflow"] == metadata.version("mlflow")
    members = {name: value for name, value in client.get("/ready").json().items() if not name.endswith("_s")}
    assert list(members) == ["ready", "alias", "model", "registry", "refused", "feature_store", "challenger"]
    model = [("name", "ranker"), ("version", 1), ("feature_service", "service"), ("unproven", None)]
    assert list(members["model"].items()) == model
    assert list(members["registry"]) == ["last_answer_age_s", "problem"]
    assert list(members["feature_store"]) == ["usable", "problem", "last_answer_age_s", "empty"]
    problem = client.post("/scores", json={"request_id": "r", "driver_ids": [-1]}, headers={"Host": "a/b"}).json()
    assert list(problem) == ["type", "title", "status", "detail", "instance"]
    problem = client.post("/inference", json={"request_id": "r", "driver_ids": [-1]}).json()
    assert list(problem) == ["type", "title", "status", "detail", "instance", "excluded", "request_id"]


def test_a_join_key_may_have_a_name_that_is_not_a_python_identifier() -> None:
    with api(FakeScorer(link=features(JoinKey("driver-id", "int64")))) as client:
        answer = when_ready(client).post("/inference", json={"request_id": "r", "driver-ids": [3, 5]})
    assert answer.json()["prediction"] == 5


def failing(error: Exception) -> FakeScorer:
    def fail(rows: Any) -> Any:
        raise error

    return FakeScorer(function=fail)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (FeatureStoreError("reading the online store", "Error 111 connecting to secret-host:6379"), 503),
        (PredictionFailed("ranker/1", "ValueError on 1 rows, secret"), 500),
        (RuntimeError("secret"), 500),
        (FeaturesRejected([("driver_id 1", "stale")], 1), 422),
    ],
)
def test_the_problems_of_failures_reveal_no_internals(error: Exception, status: int) -> None:
    with api(failing(error)) as client:
        response = when_ready(client).post("/inference", json={"request_id": "r", "driver_ids": [1]})
    assert_problem(response, status)
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert ("Retry-After" in response.headers) == (status == 503)


def test_requests_to_a_model_that_hangs_end_at_their_deadline_and_use_no_more_threads() -> None:
    hang = threading.Event()

    def wait(rows: Any) -> Any:
        hang.wait(20)
        return [(1.0, None)]

    before = threading.active_count()
    with api(FakeScorer(function=wait), deadline_s=0.05, max_concurrent_requests=2, max_waiting_requests=1) as client:
        when_ready(client)
        with_threads = threading.active_count()
        kinds = []
        for _ in range(6):
            started = time.monotonic()
            response = client.post("/inference", json={"request_id": "r", "driver_ids": [1]})
            assert time.monotonic() - started < 1
            assert int(response.headers["Retry-After"]) >= 1
            kinds.append(assert_problem(response, 503)["type"].rpartition(":")[2])
        assert kinds == ["deadline-exceeded"] * 6  # each may wait, because a thread may become free in time
        assert threading.active_count() <= with_threads
        hang.set()
        deadline = time.monotonic() + 5
        while client.post("/inference", json={"request_id": "r", "driver_ids": [1]}).status_code != 200:
            assert time.monotonic() < deadline
    assert threading.active_count() <= before + 4


def test_an_unusable_value_fails_its_request_and_does_not_open_the_circuit_breaker() -> None:
    scorer = FakeScorer()
    with api(scorer) as client:
        when_ready(client)
        scorer.lookup_error = UnusableFeature(
            "reading the online store", "a feature declared int64 was written as a string."
        )
        for _ in range(2 * OPENS_AFTER):
            answer = client.post("/inference", json={"request_id": "r", "driver_ids": [1]})
            assert assert_problem(answer, 500)["type"].endswith(":unusable-feature")
            assert "Retry-After" not in answer.headers
        scorer.lookup_error = None
        assert client.post("/inference", json={"request_id": "r", "driver_ids": [1]}).status_code == 200


def test_the_page_loads_only_files_of_this_server(client: TestClient[Any]) -> None:
    page = client.get("/")
    assert page.headers["Content-Type"].startswith("text/html")
    assert "http" not in page.text
    vendored = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")
    for name in ("start.js", *(f"swagger-ui/{file}" for file in vendored)):
        assert f"static/{name}" in page.text
        assert client.get(f"/static/{name}").status_code == 200


@pytest.mark.parametrize("path", ["/inference", "/scores"])
def test_options_returns_the_allowed_methods(client: TestClient[Any], path: str) -> None:
    answer = client.options(path)
    assert (answer.status_code, answer.content, answer.headers["Allow"]) == (204, b"", "POST, OPTIONS")


def test_the_first_of_two_headers_with_one_name_is_used() -> None:
    sent = [(b"a", b"first"), (b"b", b"only"), (b"a", b"second")]
    assert headers_of({"headers": sent}) == {b"a": b"first", b"b": b"only"}  # type: ignore[typeddict-item]
