"""The bodies of answers, with a fake model."""

import json
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.model.request_schema import EntityRequest, RequestSchema
from api.model.scorer import RowScores
from api.protocols.answers import AnswerSchema
from scoring.models.outputs import ONE_NUMBER, OutputColumn, Outputs
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeScorer, features

GOLD = Outputs((OutputColumn("label", "string"), OutputColumn("gold", "double")), rank_by=1)


@given(st.lists(st.none() | st.sampled_from([-1.0, -0.0, 0.0, 1e22]), min_size=1, max_size=20), st.integers(1, 25))
def test_the_top_are_the_best_in_order_and_ties_are_in_the_order_of_the_request(
    values: list[float | None], count: int
) -> None:
    if not any(value is not None for value in values):
        return
    schema = RequestSchema("m/1", features(), 100)
    keys, reasons = list(range(len(values))), ["stale" if value is None else None for value in values]
    answers = AnswerSchema(schema, "exclude", ONE_NUMBER)

    class Served:
        scorer = FakeScorer()

    Served.schema = schema  # type: ignore[attr-defined]
    request = EntityRequest("r", {"driver_id": keys}, len(keys), count)
    answer: Any = msgspec.to_builtins(answers.inference(Served, request, RowScores([values], reasons)))  # type: ignore[arg-type]

    expected = sorted(
        ({"driver_id": key, "score": value} for key, value in enumerate(values) if value is not None),
        key=lambda row: -row["score"],
    )
    assert answer["top"] == expected[:count]
    assert (answer["prediction"], answer["score"]) == (expected[0]["driver_id"], expected[0]["score"])


@pytest.mark.parametrize(
    ("outputs", "scores", "top"),
    [
        (ONE_NUMBER, [0.5, 1e22, 0.5, None], b'{"driver_id":3,"score":1e22},{"driver_id":4,"score":0.5}'),
        (
            GOLD,
            [("a", 0.5), ("b", 0.75), ("c", 0.5), None],
            b'{"driver_id":3,"outputs":{"label":"b","gold":0.75}},{"driver_id":4,"outputs":{"label":"a","gold":0.5}}',
        ),
    ],
    ids=["one number", "several outputs"],
)
def test_the_top_are_an_added_member(outputs: Outputs, scores: list[Any], top: bytes) -> None:
    rows = [(score, "stale" if score is None else None) for score in scores]
    with api(FakeScorer(function=lambda _: rows, outputs=outputs)) as client:
        when_ready(client)
        body = {"request_id": "r", "driver_ids": [4, 3, 2, 1]}
        without = client.post("/inference", json=body).content
        assert client.post("/inference", json=body | {"top": 2}).content == without[:-1] + b',"top":[' + top + b"]}"
        all_of_them = client.post("/inference", json=body | {"top": 9}).json()["top"]
        assert [row["driver_id"] for row in all_of_them] == [3, 4, 2]
        assert client.post("/scores", json=body | {"top": 2}).content == client.post("/scores", json=body).content


def test_the_log_names_the_overridden_features_without_their_values(capfd: pytest.CaptureFixture[str]) -> None:
    link = features(overridable={"price": pa.float64(), "tier": pa.string()})
    rows = [{"driver_id": 1}, {"driver_id": 2, "overrides": {"tier": "secret"}}]
    with api(FakeScorer(link=link)) as client:
        when_ready(client)
        for members in ({}, {"overrides": {}}, {"overrides": {"price": 123.5}}):
            client.post("/scores", json={"request_id": "r", "driver_ids": [1]} | members)
        client.post("/inference", json={"request_id": "r", "entity_rows": rows})
    log = capfd.readouterr().err
    lines = [json.loads(line) for line in log.splitlines() if '"method":"POST"' in line]
    assert [line.get("overrides") for line in lines] == [None, None, ["price"], ["tier"]]
    assert "secret" not in log
    assert "123.5" not in log
