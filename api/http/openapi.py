"""The OpenAPI document. Written here, not generated: the bodies follow from the model that serves (`RequestForm`)."""

from typing import Any

from api.http.problems import KINDS, MEDIA_TYPE, TYPE_PREFIX
from api.model.request_schema import RequestForm
from scoring.settings import Settings

API_VERSION = "0.1.0"
REF = "#/components/schemas/{name}"

ABOUT = """Scores entities with the model version that the registry's alias names, on features from the online store.

Every error is an RFC 9457 problem (`application/problem+json`) with an `instance` that also stands in the log.
A 503 has a `Retry-After` in seconds."""

BODY_PROBLEMS = (400, 408, 413, 415, 422, 500, 503)
PROBLEM_MEANINGS = {
    400: "The body is no JSON text in UTF-8, or the request is malformed.",
    401: "No key, or one that does not fit.",
    408: "The body did not arrive within SERVING_BODY_TIMEOUT_S.",
    413: "The body is larger than SERVING_MAX_BODY_BYTES.",
    415: "The body is not declared as application/json, or is compressed: then Accept-Encoding says what is taken.",
    422: "JSON, but not a request for this model (a wrong type, a missing, unknown or repeated member, too many "
    "entities), or no entity could be scored: then `excluded` says why.",
    500: "The model failed on this request, or something is broken.",
    503: "No model serves yet, too many requests wait, the feature store failed, or there was no answer in time.",
}
MODEL = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "version": {"type": "integer"}},
    "required": ["name", "version"],
}
KEY_SCHEMES = {"key": {"type": "http", "scheme": "bearer", "description": "One of SERVING_API_KEYS."}}
REASON = {
    "type": "string",
    "description": "`not_found`: the online store has no row for it. `stale`: its row is past the feature view's "
    "time to live. `null_feature`: a feature is null. `not_finite`: the model gave no finite number.",
}


def describe(settings: Settings, form: RequestForm | None, *, keys_needed: bool) -> dict[str, Any]:
    """The document for the model that serves; None for none yet: then the bodies are described in general."""
    body, components = _request(settings, form)
    best = _scoring("inference", "The best of the entities asked for", body, "Inference", keys_needed)
    each = _scoring("scores", "One score an entity, in request order", body, "Scores", keys_needed)
    keys = _key_schemas(form)
    schemas = {
        "Problem": _problem(),
        "Model": MODEL,
        "Excluded": _object({**keys, "reason": REASON}),
        "EntityScore": _object(
            {**keys, "score": {"type": ["number", "null"]}, "reason": {**REASON, "type": ["string", "null"]}}
        ),
        "Inference": _inference(settings, keys),
        "Scores": _scores(settings),
        "Readiness": _readiness(),
        **components,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Model serving", "version": API_VERSION, "description": ABOUT},
        "servers": [{"url": "./"}],
        "tags": [{"name": "scoring"}, {"name": "health"}],
        "paths": {
            "/inference": {"post": best},
            "/scores": {"post": each},
            "/live": {"get": _health("live", "The process is up", _object({"live": {"const": True}}), ())},
            "/ready": {"get": _health("ready", "Model and feature store are usable", _ref("Readiness"), (503,))},
            "/version": {"get": _health("version", "What serves now", _version(), (503,))},
            "/metrics": {"get": _metrics()},
        },
        "components": {"schemas": schemas, **({"securitySchemes": KEY_SCHEMES} if keys_needed else {})},
    }


def _request(settings: Settings, form: RequestForm | None) -> tuple[dict[str, Any], dict[str, Any]]:
    if form is None:
        schema = {
            "type": "object",
            "properties": {"request_id": {"type": "string", "minLength": 1, "maxLength": 128}},
            "required": ["request_id"],
            "additionalProperties": {"type": "array", "minItems": 1, "maxItems": settings.max_entities},
            "description": "No model serves yet. Its join key will name the second member: `<key>s` for a list of "
            "keys, or `entity_rows` for a list of objects with keys and request-time inputs.",
        }
        return {"required": True, "content": {"application/json": {"schema": schema}}}, {}
    schema, components = form.schema(REF)
    return {
        "required": True,
        "content": {"application/json": {"schema": schema, "example": form.example()}},
    }, components


def _key_schemas(form: RequestForm | None) -> dict[str, Any]:
    return form.key_schemas() if form else {"<key>": {"type": ["integer", "string"]}}


def _inference(settings: Settings, keys: dict[str, Any]) -> dict[str, Any]:
    choice = next(iter(keys.values())) if len(keys) == 1 else _object(keys)
    return _object(
        {
            "request_id": {"type": "string"},
            "prediction": {
                **choice,
                "description": "The entity with the highest score; of equals, the first asked for.",
            },
            "score": {"type": "number", "description": "Its predicted value."},
            "model": _ref("Model"),
            "excluded": {
                "type": "array",
                "items": _ref("Excluded"),
                "description": "Entities without a score, and why.",
            },
            **_imputed(settings),
            "error": {"type": "null"},
        }
    )


def _scores(settings: Settings) -> dict[str, Any]:
    return _object(
        {
            "request_id": {"type": "string"},
            "model": _ref("Model"),
            "scores": {"type": "array", "items": _ref("EntityScore")},
            **_imputed(settings),
        }
    )


def _imputed(settings: Settings) -> dict[str, Any]:
    if settings.missing_features != "impute":
        return {}
    description = "Entities that were scored with values put in the place of missing features, and why."
    return {"imputed": {"type": "array", "items": _ref("Excluded"), "description": description}}


def _scoring(operation: str, summary: str, body: dict[str, Any], answer: str, keys_needed: bool) -> dict[str, Any]:
    model_header = {"schema": {"type": "string"}, "description": "`name/version` of the model that answered."}
    id_header = {
        "schema": {"type": "string"},
        "description": "The request's own id; percent-encoded where not visible ASCII.",
    }
    return {
        "operationId": operation,
        "tags": ["scoring"],
        "summary": summary,
        "requestBody": body,
        "responses": {
            "200": {
                "description": summary + ".",
                "headers": {"X-Request-Id": id_header, "X-Model-Version": model_header},
                "content": {"application/json": {"schema": _ref(answer)}},
            },
            **_problems((401, *BODY_PROBLEMS) if keys_needed else BODY_PROBLEMS),
        },
        **({"security": [{name: []} for name in KEY_SCHEMES]} if keys_needed else {}),
    }


def _metrics() -> dict[str, Any]:
    summary = "Prometheus metrics"
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "metrics",
        "tags": ["health"],
        "summary": summary,
        "responses": {"200": {"description": summary + ".", "content": text}},
    }


def _health(operation: str, summary: str, schema: dict[str, Any], problems: tuple[int, ...]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "tags": ["health"],
        "summary": summary,
        "responses": {
            "200": {"description": summary + ".", "content": {"application/json": {"schema": schema}}},
            **_problems(problems),
        },
    }


def _problems(statuses: tuple[int, ...]) -> dict[str, Any]:
    retry = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait before another attempt."}}
    return {
        str(status): {
            "description": PROBLEM_MEANINGS[status],
            **({"headers": retry} if status == 503 else {}),
            "content": {MEDIA_TYPE: {"schema": _ref("Problem")}},
        }
        for status in statuses
    }


def _problem() -> dict[str, Any]:
    types = sorted({TYPE_PREFIX + kind.name for kind in KINDS})
    return {
        "type": "object",
        "properties": {
            "type": {"type": "string", "format": "uri", "enum": types},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {
                "type": "string",
                "format": "uri",
                "description": "Names this one occurrence, also in the log.",
            },
            "request_id": {"type": "string", "description": "Where the request could be read."},
            "excluded": {"type": "array", "items": _ref("Excluded")},
        },
        "required": ["type", "title", "status", "detail", "instance"],
    }


def _readiness() -> dict[str, Any]:
    nullable_text = {"type": ["string", "null"]}
    nullable_seconds = {"type": ["number", "null"]}
    model = _object({**MODEL["properties"], "feature_service": {"type": "string"}})  # type: ignore[dict-item]
    refused = {
        "model": {"type": "string"},
        "reason": {"type": "string"},
        "fault_of": {
            "enum": ["version", "this_machine"],
            "description": "`this_machine`: the version could not be tried on this machine.",
        },
        "attempts": {"type": "integer"},
    }
    return _object(
        {
            "ready": {"type": "boolean"},
            "alias": {"type": "string", "description": "`model@alias` that is followed."},
            "model": {"oneOf": [model, {"type": "null"}]},
            "registry": _object({"last_answer_age_s": nullable_seconds, "problem": nullable_text}),
            "refused": {
                "oneOf": [_object({**refused, "next_attempt_in_s": {"type": "number"}}), {"type": "null"}],
                "description": "A version that the alias names and that can't serve; the one before it serves on.",
            },
            "feature_store": _object(
                {"usable": {"type": "boolean"}, "problem": nullable_text, "last_answer_age_s": nullable_seconds}
            ),
        }
    )


def _version() -> dict[str, Any]:
    return _object(
        {
            "model": _ref("Model"),
            "feature_service": {"type": "string"},
            "definitions": {"type": "string", "description": "Hash of the feature definitions that it is served on."},
        }
    )


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REF.format(name=name)}
