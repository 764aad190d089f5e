"""The OpenAPI document. The schemas of its bodies are generated from the same types as the bodies themselves."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.http.readiness import FeatureServiceName, Readiness
from api.model.request_schema import RequestForm
from api.protocols.answers import Model, answer_form
from api.protocols.problems import MEDIA_TYPE, Problem
from scoring.models.outputs import Outputs
from scoring.settings import Settings

API_VERSION = "0.1.0"
REF = "#/components/schemas/{name}"

ABOUT = """Scores entities with the model version that the registry's alias names, using features from the online store.

Every error is an RFC 9457 problem (`application/problem+json`) with an `instance` that also appears in the log.
A 503 has a `Retry-After` in seconds."""

BODY_PROBLEMS = (400, 408, 413, 415, 422, 500, 503)
PROBLEM_DESCRIPTIONS = {
    400: "The body is not JSON in UTF-8, or the request is malformed.",
    401: "The API key is missing or unknown.",
    408: "The body did not arrive within SERVING_BODY_TIMEOUT_S.",
    413: "The body is larger than SERVING_MAX_BODY_BYTES.",
    415: "The body is not declared as application/json, or it is compressed.",
    422: "The body is JSON, but not a request for this model (a wrong type, a missing, unknown or duplicate member, "
    "too many entities): `example` is then a valid request. Or no entity could be scored: `excluded` has the reasons.",
    500: "The model failed on this request, or an internal error occurred.",
    503: "No model serves yet, too many requests wait, the feature store failed, or there was no response in time.",
}
KEY_SCHEMES = {"key": {"type": "http", "scheme": "bearer", "description": "One of SERVING_API_KEYS."}}


class Live(msgspec.Struct, frozen=True):
    """The process is up."""

    live: Annotated[bool, Meta(extra_json_schema={"const": True})]


class Version(msgspec.Struct, frozen=True):
    """What serves now."""

    model: Model
    feature_service: FeatureServiceName
    definitions: Annotated[str, Meta(description="Hash of the feature definitions.")]


def describe(
    settings: Settings, form: RequestForm | None, outputs: Outputs, *, keys_required: bool, real_example: bool
) -> dict[str, Any]:
    """Return the document.

    Args:
        settings: the settings of the application.
        form: the requests of the current model. None before the first is loaded: bodies are then described in general.
        outputs: the outputs of the current model; ONE_NUMBER before the first is loaded.
        keys_required: whether scoring requires an API key.
        real_example: whether the example may have entity keys from the online store.
    """
    answers = answer_form(form, settings.missing_features, outputs)
    types = [Problem, Live, Readiness, Version, answers.inference_answer, answers.scores_answer, answers.excluded]
    _, schemas = msgspec.json.schema_components((*types, *([form.body_type] if form else [])), ref_template=REF)
    body: dict[str, Any] = {"schema": _any_request(settings)}
    if form is not None:
        form.complete(schemas["Request"])
        body = {"schema": _ref("Request"), "example": form.example(real=real_example)}
    statuses = (401, *BODY_PROBLEMS) if keys_required else BODY_PROBLEMS
    scoring = {
        "tags": ["scoring"],
        "requestBody": {"required": True, "content": {"application/json": body}},
        **({"security": [{name: []} for name in KEY_SCHEMES]} if keys_required else {}),
    }
    headers = {
        "X-Request-Id": _header("string", "The request's own id, percent-encoded outside visible ASCII."),
        "X-Model-Version": _header("string", "`name/version` of the model that answered."),
    }
    best, each, health = "The best of the requested entities", "One score per entity, in request order", ["health"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Model serving", "version": API_VERSION, "description": ABOUT},
        "servers": [{"url": "./"}],
        "tags": [{"name": "scoring"}, {"name": "health"}],
        "paths": {
            "/inference": {"post": scoring | _operation("inference", best, _ref("Inference"), statuses, headers)},
            "/scores": {"post": scoring | _operation("scores", each, _ref("Scores"), statuses, headers)},
            "/live": {"get": {"tags": health} | _operation("live", "The process is up", _ref("Live"))},
            "/ready": {
                "get": {"tags": health}
                | _operation("ready", "Model and feature store are usable", _ref("Readiness"), (503,))
            },
            "/version": {"get": {"tags": health} | _operation("version", "What serves now", _ref("Version"), (503,))},
            "/metrics": {"get": {"tags": health} | _operation("metrics", "Prometheus metrics", None)},
        },
        "components": {"schemas": schemas, **({"securitySchemes": KEY_SCHEMES} if keys_required else {})},
    }


def _any_request(settings: Settings) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"request_id": {"type": "string", "minLength": 1, "maxLength": 128}},
        "required": ["request_id"],
        "additionalProperties": {"type": "array", "minItems": 1, "maxItems": settings.max_entities},
        "description": "No model serves yet. Its join keys will determine the second member: `entity_rows`, a list of "
        "objects with keys and request inputs, or `<key>s`, a list of keys.",
    }


def _operation(
    name: str,
    summary: str,
    schema: dict[str, Any] | None,
    problems: tuple[int, ...] = (),
    headers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe an operation by its 200 response, which is plain text if `schema` is None, and its problems."""
    content = {"application/json": {"schema": schema}} if schema else {"text/plain": {"schema": {"type": "string"}}}
    retry = {"Retry-After": _header("integer", "Seconds to wait before another attempt.")}
    responses: dict[str, Any] = {
        "200": {"description": f"{summary}.", **({"headers": headers} if headers else {}), "content": content}
    }
    for status in problems:
        responses[str(status)] = {
            "description": PROBLEM_DESCRIPTIONS[status],
            **({"headers": retry} if status == 503 else {}),
            "content": {MEDIA_TYPE: {"schema": _ref("Problem")}},
        }
    return {"operationId": name, "summary": summary, "responses": responses}


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"schema": {"type": kind}, "description": description}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REF.format(name=name)}
