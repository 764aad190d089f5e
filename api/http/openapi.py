"""The OpenAPI document. Each wire format describes its own operations; what they have in common is added here."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.http.readiness import FeatureServiceName, Readiness
from api.model.request_schema import RequestForm
from api.protocols.answers import Model, answer_form
from api.protocols.operation import Bodies, Content
from api.protocols.wire_format import WireFormat
from scoring.models.outputs import Outputs
from scoring.settings import Settings

API_VERSION = "0.1.0"

ABOUT = """Scores entities with the model version that the registry's alias names, using features from the online store.

Every error is an RFC 9457 problem (`application/problem+json`) with an `instance` that also appears in the log.
A 503 has a `Retry-After` in seconds."""

PROBLEM_DESCRIPTIONS = {
    400: "The body can't be decoded, or the request is malformed.",
    401: "The API key is missing or unknown.",
    408: "The body did not arrive within SERVING_BODY_TIMEOUT_S.",
    413: "The body is larger than SERVING_MAX_BODY_BYTES.",
    415: "The body has another media type, or it is compressed.",
    422: "The body can be decoded, but is not a request for this model (a wrong type, a missing, unknown or duplicate "
    "member, too many entities): `example` is then a valid request. Or no entity could be scored: `excluded` has the "
    "reasons.",
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
    settings: Settings,
    formats: Mapping[str, WireFormat],
    form: RequestForm | None,
    outputs: Outputs,
    *,
    keys_required: bool,
    real_example: bool,
) -> dict[str, Any]:
    """Return the document.

    Args:
        settings: the settings of the application.
        formats: path → its wire format.
        form: the requests of the current model. None before the first is loaded: bodies are then described in general.
        outputs: the outputs of the current model; ONE_NUMBER before the first is loaded.
        keys_required: whether scoring requires an API key.
        real_example: whether the example may have entity keys from the online store.
    """
    bodies = Bodies(form, answer_form(form, settings.missing_features, outputs), real_example=real_example)
    paths = {
        path: {"post": _scoring(path, wire_format, bodies, keys_required=keys_required)}
        for path, wire_format in formats.items()
        if hasattr(wire_format, "operation")
    }
    paths |= {path: {"get": operation} for path, operation in _health(bodies).items()}
    tags = dict.fromkeys(tag for item in paths.values() for operation in item.values() for tag in operation["tags"])
    return {
        "openapi": "3.1.0",
        "info": {"title": "Model serving", "version": API_VERSION, "description": ABOUT},
        "servers": [{"url": "./"}],
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": bodies.schemas, **({"securitySchemes": KEY_SCHEMES} if keys_required else {})},
    }


def _scoring(path: str, wire_format: Any, bodies: Bodies, *, keys_required: bool) -> dict[str, Any]:
    """Describe POST to the path of a wire format."""
    own = wire_format.operation(path, bodies)
    headers = {
        "X-Request-Id": _header("string", "The request's own id, percent-encoded outside visible ASCII."),
        "X-Model-Version": _header("string", "`name/version` of the model that answered."),
    }
    statuses = (401, *own.statuses) if keys_required else own.statuses
    operation = _operation(own.tag, own.name, own.summary, own.answer, statuses, own.problem, headers)
    if parameters := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ]
    if keys_required:
        operation["security"] = [{name: []} for name in KEY_SCHEMES]
    return operation | {"requestBody": {"required": True, "content": own.request}}


def _health(bodies: Bodies) -> dict[str, dict[str, Any]]:
    """Return path → the operation of GET."""

    def operation(
        name: str, summary: str, answer: type[msgspec.Struct], statuses: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        content = {"application/json": {"schema": bodies.schema(answer)}}
        return _operation("health", name, summary, content, statuses, bodies.problem)

    plain = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/live": operation("live", "The process is up", Live),
        "/ready": operation("ready", "Model and feature store are usable", Readiness, (503,)),
        "/version": operation("version", "What serves now", Version, (503,)),
        "/metrics": _operation("health", "metrics", "Prometheus metrics", plain, (), {}),
    }


def _operation(
    tag: str,
    name: str,
    summary: str,
    answer: Content,
    statuses: tuple[int, ...],
    problem: Content,
    headers: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe an operation by its 200 response and its problems."""
    retry = {"Retry-After": _header("integer", "Seconds to wait before another attempt.")}
    responses: dict[str, Any] = {
        "200": {"description": f"{summary}.", **({"headers": headers} if headers else {}), "content": answer}
    }
    for status in statuses:
        responses[str(status)] = {
            "description": PROBLEM_DESCRIPTIONS[status],
            **({"headers": retry} if status == 503 else {}),
            "content": problem,
        }
    return {"tags": [tag], "operationId": name, "summary": summary, "responses": responses}


def _header(kind: str, description: str) -> dict[str, Any]:
    return {"schema": {"type": kind}, "description": description}
