"""The OpenAPI document."""

from typing import Any

import openapi_spec_validator
import pyarrow as pa
import pytest
from litestar.testing import TestClient

from api.app import wire_formats
from scoring.feast_plugins.join_keys import JoinKey
from scoring.models.outputs import OutputColumn, Outputs
from scoring.secret import Secret
from scoring.settings import Settings
from tests.support.api_client import api, when_ready
from tests.support.fakes import FakeScorer, features

SCORERS = {
    "one key": FakeScorer(),
    "two keys and inputs": FakeScorer(
        link=features(
            JoinKey("customer_id", "string"),
            JoinKey("merchant_id", "int32"),
            request_inputs={"amount": pa.float64(), "count": pa.int64(), "at": pa.timestamp("ns")},
        ),
        function=lambda rows: [(1.0, None) for _ in rows["customer_id"]],
    ),
    "several outputs": FakeScorer(
        outputs=Outputs((OutputColumn("label", "string"), OutputColumn("yes!", "double")), rank_by=1),
        function=lambda rows: [(("yes!", 0.5), None) for _ in rows["driver_id"]],
    ),
}


def document_of(client: TestClient[Any]) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    openapi_spec_validator.validate(document)
    return document


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_the_document_is_valid_and_describes_every_route_before_and_with_a_model(scorer: FakeScorer) -> None:
    with api(scorer) as client:
        routes = {
            (route.path_format, method.lower())
            for route in client.app.routes
            for method in route.methods - {"OPTIONS", "HEAD"}
            if not route.path.startswith("/static")
        } - {("/", "get"), ("/openapi.json", "get")}
        routes |= {(path, "post") for path in wire_formats(Settings(model_name="ranker"))}
        for document in (document_of(client), document_of(when_ready(client))):
            assert {(path, method) for path, item in document["paths"].items() for method in item} == routes
        operations = [operation for item in document["paths"].values() for operation in item.values()]
        assert len({operation["operationId"] for operation in operations}) == len(operations)
        assert {tag for operation in operations for tag in operation["tags"]} == {
            tag["name"] for tag in document["tags"]
        }


@pytest.mark.parametrize("scorer", SCORERS.values(), ids=SCORERS)
def test_each_documented_example_gets_scores(scorer: FakeScorer) -> None:
    with api(scorer, api_keys=(Secret("0123456789abcdef"),)) as client:
        document = document_of(when_ready(client))
        for path, item in document["paths"].items():
            for operation in (each for each in item.values() if "requestBody" in each):
                assert operation["security"] == [{"key": []}]
                assert "401" in operation["responses"]
                example = operation["requestBody"]["content"]["application/json"]["example"]
                response = client.post(
                    path.format(name="ranker", version=1),
                    json=example,
                    headers={"Authorization": "Bearer 0123456789abcdef"},
                )
                assert response.status_code == 200, response.text


def test_the_document_has_the_limits_of_keys() -> None:
    with api() as client:
        request = document_of(when_ready(client))["components"]["schemas"]["Request"]
    keys = request["properties"]["driver_ids"]["items"]
    assert keys == {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
