"""The OpenAPI document. Each wire format describes its own operations; what they have in common is added here."""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.http.readiness import FeatureServiceName, Readiness
from api.model.model_slot import Served
from api.protocols.answers import Model, answer_schema
from api.protocols.open_inference_metadata import metadata_operations
from api.protocols.operation import Bodies, Operation
from api.protocols.wire_format import WireFormat
from scoring.models.outputs import ONE_NUMBER
from scoring.settings import Settings

API_VERSION = "0.1.0"

ABOUT = """Scores entities with the model version that the registry's alias names, using features from the online store.

Errors are RFC 9457 problems (`application/problem+json`), except in the protocols of MLflow and of Open Inference.
Each has an `instance` that also appears in the log. A 503 has a `Retry-After` in seconds."""

PROBLEM_DESCRIPTIONS = {
    400: "The request is malformed, for example because its body can't be decoded.",
    404: "No such model or version serves.",
    401: "The API key is missing or unknown.",
    406: "The header Accept excludes all media types of the response.",
    408: "The body did not arrive within SERVING_BODY_TIMEOUT_S.",
    413: "The body is larger than SERVING_MAX_BODY_BYTES; more is allowed for tables.",
    415: "The body has another media type, or it is compressed.",
    422: "The body can be decoded, but is not a request for this model (a wrong type, a missing, unknown or duplicate "
    "member, too many entities). Or no entity could be scored.",
    500: "The model failed on this request, or an internal error occurred.",
    503: "No model serves yet, too many requests are unfinished, the feature store failed, or there was no response in "
    "time.",
}
TAGS = {
    "scoring": "The API's own JSON",
    "mlflow": "The protocol of MLflow's scoring server",
    "open_inference": "The Open Inference Protocol V2, which clients of Triton, KServe and MLServer speak",
    "health": "For operators and load balancers",
}
SCORED = {
    "X-Request-Id": {
        "schema": {"type": "string"},
        "description": "The request's own id, percent-encoded outside visible ASCII.",
    },
    "X-Model-Version": {"schema": {"type": "string"}, "description": "`name/version` of the model that answered."},
}
RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before another attempt."}}
KEY_SCHEMES = {"key": {"type": "http", "scheme": "bearer", "description": "One of SERVING_API_KEYS."}}


class Live(msgspec.Struct, frozen=True):
    """The process is up."""

    live: Annotated[bool, Meta(extra_json_schema={"const": True})]


class Version(msgspec.Struct, frozen=True):
    """What serves now."""

    model: Model
    feature_service: FeatureServiceName
    definitions: Annotated[str, Meta(description="Hash of the feature definitions.")]
    mlflow: Annotated[str, Meta(description="Version of the installed MLflow, of which the API speaks the protocol.")]


def describe(
    settings: Settings,
    formats: Mapping[str, WireFormat],
    served: Served | None,
    *,
    keys_required: bool,
    real_example: bool,
) -> dict[str, Any]:
    """Return the document.

    Args:
        settings: the settings of the application.
        formats: path → its wire format.
        served: the current model. None before the first is loaded: bodies are then described in general.
        keys_required: whether scoring requires an API key.
        real_example: whether examples may have entity keys from the online store.
    """
    schema, outputs = (served.schema, served.scorer.outputs) if served else (None, ONE_NUMBER)
    bodies = Bodies(schema, answer_schema(schema, settings.missing_features, outputs), real_example=real_example)
    version = served.scorer.version if served else None
    parameters = {"name": settings.model_name, "version": str(version.version) if version else "1"}
    operations = {path: wire_format.operation(path, bodies) for path, wire_format in formats.items()}
    operations |= metadata_operations(bodies) | _health(bodies)
    paths = {
        path: {"post" if own.request else "get": _operation(path, own, parameters, keys_required=keys_required)}
        for path, own in operations.items()
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Model serving", "version": API_VERSION, "description": ABOUT},
        "servers": [{"url": "./"}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": paths,
        "components": {"schemas": bodies.schemas, **({"securitySchemes": KEY_SCHEMES} if keys_required else {})},
    }


def _health(bodies: Bodies) -> dict[str, Operation]:
    """Return path → its operation."""

    def operation(name: str, summary: str, answer: type[msgspec.Struct], statuses: tuple[int, ...] = ()) -> Operation:
        content = {"application/json": {"schema": bodies.schema(answer)}}
        return Operation(name, "health", summary, content, bodies.problem, statuses)

    plain = {"text/plain": {"schema": {"type": "string"}}}
    blank: dict[str, Any] = {"application/json": {}}  # a line break, as in MLflow's protocol
    pings = {
        f"/{name}": Operation(name, "mlflow", "/ready is 200", blank, blank, (404,)) for name in ("ping", "health")
    }
    return {
        "/live": operation("live", "The process is up", Live),
        "/ready": operation("ready", "Model and feature store are usable", Readiness, (503,)),
        **pings,
        "/version": operation("version", "What serves now", Version, (503,)),
        "/metrics": Operation("metrics", "health", "Prometheus metrics", plain, bodies.problem),
    }


def _operation(path: str, own: Operation, parameters: Mapping[str, str], *, keys_required: bool) -> dict[str, Any]:
    """Return the OpenAPI Operation Object. `parameters` has an example for each parameter of the paths."""
    scores = own.request is not None
    success = {"description": f"{own.summary}.", "content": own.answer, **({"headers": SCORED} if scores else {})}
    responses: dict[str, Any] = {"200": success}
    for status in (401, *own.statuses) if scores and keys_required else own.statuses:
        responses[str(status)] = {
            "description": PROBLEM_DESCRIPTIONS[status],
            **({"headers": RETRY} if status == 503 else {}),
            "content": own.problem,
        }
    operation: dict[str, Any] = {
        "tags": [own.tag],
        "operationId": own.name,
        "summary": own.summary,
        "responses": responses,
    }
    if names := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "example": parameters[name]}
            for name in names
        ]
    if scores:
        operation["requestBody"] = {"required": True, "content": own.request}
        if keys_required:
            operation["security"] = [{name: []} for name in KEY_SCHEMES]
    return operation
