"""POST /invocations and the other routes of MLflow's scoring server, with a fake model."""

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient
from mlflow.deployments import PredictionsResponse

from scoring.errors import FeaturesRejected, FeatureStoreError, PredictionFailed
from scoring.feast_plugins.join_keys import JoinKey
from scoring.models.outputs import OutputColumn, Outputs
from scoring.secret import Secret
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeScorer, features
from tests.support.servers import wait_until

MALFORMED = sorted((Path(__file__).resolve().parents[4] / "tests" / "corpus" / "400").iterdir())
JSON, CSV = {"Content-Type": "application/json"}, {"Content-Type": "text/csv"}
KEYS = (JoinKey("code", "string"), JoinKey("number", "int64"))
INPUTS: dict[str, pa.DataType] = {
    "amount": pa.float64(),
    "count": pa.int32(),
    "new": pa.bool_(),
    "note": pa.string(),
    "at": pa.timestamp("us", "UTC"),
}
COLUMNS = ["code", "number", *INPUTS]
ROW = {"code": "0017", "number": 7, "amount": 0.5, "count": 2, "new": True, "note": "a", "at": "2026-01-31T12:00:00Z"}


class Echo(FakeScorer):
    """Scores each row with its number, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(link=features(*KEYS, request_inputs=INPUTS), function=self.keep)

    def keep(self, rows: Any) -> list[Any]:
        self.got = {name: list(values) for name, values in rows.items()}
        return [(None, "not_found") if number < 0 else (float(number), None) for number in rows["number"]]


@pytest.fixture(scope="module")
def scorer() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def client(scorer: Echo) -> Iterator[TestClient[Any]]:
    with api(scorer) as started:
        yield when_ready(started)


@pytest.fixture(scope="module")
def drivers() -> Iterator[TestClient[Any]]:
    """A model with the join key `driver_id` only."""
    with api() as started:
        yield when_ready(started)


def in_csv(columns: list[str], rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue().encode()


def assert_error(response: Any, status: int, code: str, message: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/json"
    error = response.json()
    assert list(error) == ["error_code", "message", "instance"]
    assert error["error_code"] == code
    assert message in error["message"]
    assert error["instance"].startswith("urn:uuid:")


def assert_refused(response: Any, message: str = "") -> None:
    assert_error(response, 400, "BAD_REQUEST", message)


STRINGS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "code": STRINGS,
            "number": st.integers(-(2**63), 2**63 - 1),
            "amount": st.none() | st.floats(allow_nan=False, allow_infinity=False),
            "count": st.none() | st.integers(-(2**31), 2**31 - 1),
            "new": st.none() | st.booleans(),
            "note": st.none() | STRINGS,
            "at": st.none() | st.datetimes().map(lambda at: f"{at.isoformat()}Z"),
        }
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=50)
@given(rows=ROWS, columns=st.permutations(COLUMNS))
def test_the_same_rows_are_scored_alike_in_every_form(
    client: TestClient[Any], scorer: Echo, rows: list[dict[str, Any]], columns: list[str]
) -> None:
    scores = client.post("/scores", json={"request_id": "r", "entity_rows": rows}).json()["scores"]
    expected, got = {key: [row[key[:-1]] for row in scores] for key in ("scores", "reasons")}, scorer.got
    records = [{name: row[name] for name in columns} for row in rows]
    values = [list(record.values()) for record in records]
    bodies: list[dict[str, Any]] = [
        {"dataframe_split": {"index": list(range(len(rows))), "columns": columns, "data": values}},
        {"dataframe_records": records},
        {"instances": records},
        {"instances": [[row[name] for name in COLUMNS] for row in rows]},
        {"inputs": {name: [row[name] for row in rows] for name in columns}},
        {"inputs": records},
    ]
    answers = [client.post("/invocations", json=body) for body in bodies]
    answers.append(client.post("/invocations", content=in_csv(columns, values), headers=CSV))
    for answer in answers:
        assert answer.json() == {"predictions": expected["scores"], "reasons": expected["reasons"]}
        assert scorer.got == got


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["driver_id"], "data": [[3], [-1]]}},
        {"dataframe_split": {"data": [[3], [-1]]}},
        {"dataframe_records": [{"driver_id": 3}, {"driver_id": -1}]},
        {"instances": [3, -1]},
        {"inputs": [[3.0], [-1.0]]},
        {"inputs": [3, -1], "params": {}, "client_request_id": "1"},
    ],
)
@pytest.mark.parametrize(
    "media_type", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_the_exact_bytes_of_predictions(drivers: TestClient[Any], body: Any, media_type: str) -> None:
    answer = drivers.post("/invocations", content=json.dumps(body), headers={"Content-Type": media_type})
    assert answer.content == b'{"predictions":[3.0,null],"reasons":[null,"not_found"]}'
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Model-Version"] == "ranker/1"
    assert len(answer.headers["X-Request-Id"]) == 32
    more = json.dumps(body | {"more": "?"}).replace('"?"', "1" * 5000)
    answer = drivers.post("/invocations", content=more, headers=JSON | {"X-Request-Id": "mine"})
    assert answer.json()["predictions"] == [3.0, None]
    assert answer.headers["X-Request-Id"] == "mine"


@pytest.mark.parametrize(
    ("policy", "reasons"), [("exclude", [None, "not_found"]), ("impute", ["imputed_stale", "not_found"])]
)
def test_several_outputs_are_objects_and_reasons_are_those_of_batch_outputs(policy: str, reasons: list[Any]) -> None:
    outputs = Outputs((OutputColumn("label", "string"), OutputColumn("yes!", "double")))
    rows = list(zip([("gold", 0.25), None], reasons, strict=True))
    with api(FakeScorer(function=lambda _: rows, outputs=outputs), missing_features=policy) as started:
        answer = when_ready(started).post("/invocations", json={"inputs": [1, 2]})
    predictions = [{"label": "gold", "yes!": 0.25}, {"label": None, "yes!": None}]
    assert answer.json() == {"predictions": predictions, "reasons": reasons}
    frame = PredictionsResponse.from_json(answer.text).get_predictions()
    assert frame.loc[0].tolist() == ["gold", 0.25]
    assert frame.loc[1].isna().all()


@pytest.mark.parametrize("as_csv", [False, True])
@pytest.mark.parametrize(
    ("name", "sent", "got"),
    [
        ("number", "7.0", 7),
        ("number", "9007199254740993.0", ...),
        ("number", "9007199254740993", 2**53 + 1),
        ("number", "7.5", ...),
        ("number", "NaN", ...),
        ("count", "NaN", None),
        ("count", "2e0", 2),
        ("count", "2147483648", ...),
        ("amount", "NaN", None),
        ("amount", "-Infinity", ...),
        ("amount", "1e999", ...),
        ("amount", "1_0", ...),
        ("new", "true", True),
        ("new", "maybe", ...),
        ("at", "1769860800000", ...),
    ],
)
def test_a_number_is_read_alike_in_json_and_csv(
    client: TestClient[Any], scorer: Echo, as_csv: bool, name: str, sent: str, got: Any
) -> None:
    row = json.dumps(list((ROW | {name: "?"}).values())).replace('"?"', sent)
    if as_csv:
        got = ... if sent == "NaN" else got
        answer = client.post(
            "/invocations", content=in_csv(COLUMNS, [list((ROW | {name: sent}).values())]), headers=CSV
        )
    else:
        answer = client.post("/invocations", content=f'{{"instances": [{row}]}}', headers=JSON)
    if got is ...:
        assert_refused(answer)
    else:
        assert answer.status_code == 200, answer.text
        assert scorer.got[name] == [got]
        assert type(scorer.got[name][0]) is type(got)


def test_csv_is_that_of_scores_and_may_have_the_index_of_pandas(client: TestClient[Any], scorer: Echo) -> None:
    body = b"\xef\xbb\xbf,at,code,number,amount,count,new,note\r\n0,,0017,7.0,,,,\r\n"
    answer = client.post("/invocations", content=body, headers={"Content-Type": "text/csv; charset=utf-8"})
    assert answer.json() == {"predictions": [7.0], "reasons": [None]}
    assert scorer.got == {"code": ["0017"], "number": [7]} | {name: [None] for name in INPUTS}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Missing column 'driver_id'"),
        (b"driver_id\n1,2\n", "Line 2 has 2 cells, and the header has 1"),
        (b"driver_id,x\n1,2\n", "Unknown column 'x'"),
        (b'driver_id\n"1"2\n', "The body is not valid CSV: line 2"),
        (b"driver_id\n1\xff\n", "The body is not valid CSV: byte 11 is not UTF-8"),
        (b"driver_id\n1\n1.5\n", "Column 'driver_id', line 3: Expected `integer`, got `number`"),
    ],
)
def test_a_malformed_csv_body_is_refused_with_its_place(drivers: TestClient[Any], body: bytes, message: str) -> None:
    assert_refused(drivers.post("/invocations", content=body, headers=CSV), message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "{}",
            "one of the members `dataframe_split`, `dataframe_records`, `instances`, `inputs`, got none",
        ),
        ('{"inputs": [1], "instances": [1]}', "got instances and inputs"),
        ('{"inputs": [1], "inputs": [2]}', "Duplicate JSON member 'inputs'"),
        ('{"dataframe_records": [{"driver_id": 1, "driver_id": 1}]}', "Duplicate JSON member 'driver_id'"),
        ('{"inputs": [1], "params": {"a": 1}}', "`params` is not supported: omit it"),
        ("[1]", "Expected `object`, got `array`"),
        ('{"x": "\ud800", "inputs": [1]}', "The body is not valid JSON: byte 7 is not UTF-8"),
        ('{"inputs": 1}', "Expected `object | array`, got `integer` - at `$.inputs`"),
        ('{"inputs": {"driver_id": 1}}', "Expected `array`, got `integer` - at `$.inputs[...]`"),
        ('{"inputs": {"driver_id": [1], "x": [1]}}', "Unknown column 'x'"),
        ('{"inputs": {"driver_id": [[1]]}}', "Column 'driver_id', row 0: Expected `integer`, got `array`"),
        ('{"inputs": {}}', "Missing column 'driver_id'"),
        ('{"inputs": []}', "Expected 1 to 1000 rows, got 0"),
        ('{"instances": [[1, 2]]}', "Row 0 has 2 values for 1 columns"),
        ('{"instances": [[1], 2]}', "Row 1 is not a list of values"),
        ('{"instances": [{"driver_id": 1}, [2]]}', "Row 1 is not an object"),
        ('{"dataframe_records": [{"driver_id": 1}, {}]}', "Row 1 has no 'driver_id'"),
        ('{"dataframe_records": [{"driver_id": 1}, {"driver_id": 1, "x": 1}]}', "Row 1 has 'x', which row 0 lacks"),
        ('{"dataframe_records": [1]}', "Expected `object`, got `integer` - at `$.dataframe_records[0]`"),
        ('{"dataframe_split": {"columns": ["driver_id"]}}', "missing required field `data` - at `$.dataframe_split`"),
        ('{"dataframe_split": {"data": [[1]], "x": 1}}', "unknown field `x` - at `$.dataframe_split`"),
        ('{"dataframe_split": {"columns": ["driver_id", "driver_id"], "data": []}}', "Duplicate column 'driver_id'"),
        ('{"instances": ["1"]}', "Column 'driver_id', row 0: Expected `integer`, got `string`"),
        ('{"instances": [true]}', "Column 'driver_id', row 0: Expected `integer`, got `boolean`"),
        (json.dumps({"instances": list(range(1001))}), "Expected 1 to 1000 rows, got 1001"),
    ],
)
def test_a_json_body_of_another_form_is_refused_with_its_place(
    drivers: TestClient[Any], body: str, message: str
) -> None:
    assert_refused(drivers.post("/invocations", content=body.encode(errors="surrogatepass"), headers=JSON), message)


@pytest.mark.parametrize("file", MALFORMED, ids=lambda file: file.name)
@pytest.mark.parametrize("media_type", ["application/json", "text/csv"])
def test_each_malformed_body_of_the_corpus_is_refused(drivers: TestClient[Any], file: Path, media_type: str) -> None:
    assert_refused(drivers.post("/invocations", content=file.read_bytes(), headers={"Content-Type": media_type}))


def test_a_string_that_does_not_end_is_refused_at_once(drivers: TestClient[Any]) -> None:
    started = time.process_time()
    assert drivers.post("/invocations", content=b"NaN" + b'\\"' * 400_000, headers=JSON).status_code == 400
    assert time.process_time() - started < 5  # hours, if the search for NaN goes back


@given(body=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_body_causes_an_internal_error(drivers: TestClient[Any], body: bytes) -> None:
    for headers in (JSON, CSV):
        for each in (body, b"driver_id\n" + body, b'{"inputs":[' + body + b"]}"):
            assert drivers.post("/invocations", content=each, headers=headers).status_code in {200, 400}


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "text/plain",
        "application/vnd.apache.parquet",
        "text/csv; charset=latin-1",
        "application/json; charset=utf-16",
    ],
)
def test_other_media_types_are_refused(drivers: TestClient[Any], media_type: str) -> None:
    answer = drivers.post("/invocations", content=b"driver_id\n1\n", headers={"Content-Type": media_type})
    assert_error(answer, 415, "BAD_REQUEST", "application/json or text/csv; charset=utf-8")


def failing(error: Exception) -> FakeScorer:
    def fail(_: Any) -> Any:
        raise error

    return FakeScorer(function=fail)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (FeatureStoreError("reading the online store", "secret-host:6379"), 503, "TEMPORARILY_UNAVAILABLE"),
        (PredictionFailed("ranker/1", "ValueError on 1 rows, secret"), 500, "INTERNAL_ERROR"),
        (RuntimeError("secret"), 500, "INTERNAL_ERROR"),
        (FeaturesRejected([("driver_id 1", "stale")], 1), 400, "BAD_REQUEST"),
    ],
)
def test_failures_have_mlflows_form_and_reveal_no_internals(error: Exception, status: int, code: str) -> None:
    with api(failing(error)) as started:
        answer = when_ready(started).post("/invocations", json={"inputs": [1]}, headers={"X-Request-Id": "r"})
    assert_error(answer, status, code)
    assert "secret" not in answer.text
    assert ("Retry-After" in answer.headers) == (status == 503)
    assert answer.headers["X-Request-Id"] == "r"


def test_refusals_before_scoring_have_mlflows_form() -> None:
    key = "0123456789abcdef"
    with api(api_keys=(Secret(key),), max_body_bytes=40) as started:
        when_ready(started)
        known = {"Authorization": f"Bearer {key}"}
        assert_error(started.post("/invocations", json={"inputs": [1]}), 401, "UNAUTHENTICATED", "API key")
        assert_error(started.post("/invocations", json={"inputs": [1] * 40}, headers=known), 413, "BAD_REQUEST")
        encoded = started.post("/invocations", json={"inputs": [1]}, headers=known | {"Content-Encoding": "gzip"})
        assert_error(encoded, 415, "BAD_REQUEST")
        assert_error(started.get("/invocations"), 405, "BAD_REQUEST")
        long = started.post("/invocations", json={"inputs": [1]}, headers=known | {"X-Request-Id": "r" * 129})
        assert_error(long, 400, "BAD_REQUEST", "X-Request-Id")
        assert started.post("/invocations", json={"inputs": [1]}, headers=known).status_code == 200


def test_ping_is_a_line_break_while_requests_can_be_scored() -> None:
    scorer = FakeScorer()
    with api(scorer) as started:
        when_ready(started)
        for status in (200, 404):
            for path in ("/ping", "/health"):
                answer = started.get(path)
                assert (answer.status_code, answer.content) == (status, b"\n")
                assert answer.headers["Content-Type"] == "application/json"
            scorer.store_error = FeatureStoreError("reading the online store", "no answer")
            wait_until(lambda: started.get("/ready").status_code == 503, lambda: started.get("/ready").text, 10)
