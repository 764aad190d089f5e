"""Errors as RFC 9457 problems. The only module that maps errors to HTTP statuses."""

import traceback
import uuid
from typing import Any

import litestar
import msgspec
import structlog
from litestar.exceptions import HTTPException
from litestar.types import Scope

from api.errors import (
    BodyEncoded,
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    DeadlineExceeded,
    InvalidHost,
    InvalidRequest,
    KeyNeeded,
    MalformedBody,
    MethodNotAllowed,
    NoModel,
    NothingScored,
    NotJson,
    NotSigned,
    Overloaded,
    StoreUnavailable,
    UpgradeRequested,
)
from api.http.messages import Response, header_text
from api.telemetry.request_context import RequestContext
from scoring.errors import (
    EntityRowsError,
    FeaturesRejected,
    FeatureStoreError,
    PredictionFailed,
    ServingError,
    UnusableFeature,
)

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:model-serving:problem:"


class Kind(msgspec.Struct, frozen=True):
    """One kind of problem."""

    name: str
    """The end of its `type`."""
    status: int
    title: str
    detail: str | None = None
    """What a client reads instead of the error's message, where that one is for operators."""


NOT_FOUND = Kind("not-found", 404, "Not found")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "Method not allowed")
BODY_TOO_LARGE = Kind("body-too-large", 413, "Body too large")
BAD_REQUEST = Kind("bad-request", 400, "Malformed request")
NOT_READY = Kind("not-ready", 503, "Not ready")
INVALID_REQUEST = Kind("invalid-request", 422, "Invalid request")
SEE_LOG = "The log has more under this problem's instance."
INTERNAL = Kind("internal-error", 500, "Internal error", SEE_LOG)
STORE_FAILED = Kind("feature-store-failed", 503, "Feature store failed", "Features can't be read now.")

BY_ERROR: dict[type[Exception], Kind] = {
    KeyNeeded: Kind("key-needed", 401, "API key needed"),
    NotSigned: Kind("not-signed", 401, "Delivery not signed"),
    BodyTooLarge: BODY_TOO_LARGE,
    BodyTooSlow: Kind("body-too-slow", 408, "Body too slow"),
    NotJson: Kind("not-json", 415, "Body not declared as JSON"),
    BodyEncoded: Kind("body-encoded", 415, "Body compressed"),
    MalformedBody: Kind("malformed-body", 400, "Malformed JSON"),
    ClientLeft: BAD_REQUEST,
    InvalidHost: BAD_REQUEST,
    UpgradeRequested: BAD_REQUEST,
    MethodNotAllowed: METHOD_NOT_ALLOWED,
    InvalidRequest: INVALID_REQUEST,
    EntityRowsError: INVALID_REQUEST,
    NothingScored: Kind("nothing-scored", 422, "No entity could be scored"),
    FeaturesRejected: Kind("features-rejected", 422, "Features missing"),
    # /ready gives the reason, with names that only operators should read.
    NoModel: Kind("no-model", 503, "No model serves yet", "No model version serves yet: see /ready for the reason."),
    Overloaded: Kind("overloaded", 503, "Too many requests"),
    DeadlineExceeded: Kind("deadline-exceeded", 503, "Deadline exceeded"),
    StoreUnavailable: STORE_FAILED,
    FeatureStoreError: STORE_FAILED,
    UnusableFeature: Kind("unusable-feature", 500, "Unusable feature value", SEE_LOG),
    PredictionFailed: Kind("prediction-failed", 500, "Prediction failed", "The model failed on this request."),
}
BY_STATUS = {kind.status: kind for kind in (NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_LARGE)}
KINDS = tuple(dict.fromkeys((*BY_ERROR.values(), *BY_STATUS.values(), BAD_REQUEST, NOT_READY, INTERNAL)))


def problem_for(error: Exception, scope: Scope) -> Response:
    """The response for an error that a request led to. A failure of ours also gets a line of its own in the log.

    Each problem has an `instance` of its own, which the log has, too. No body holds feature values, a stack trace or a
    message that was not written for clients.
    """
    kind, context = _kind(error), RequestContext.of(scope)
    context.problem, context.instance = kind.name, _new_instance()
    members: dict[str, Any] = {}
    headers = _headers(kind, error)
    if isinstance(error, NothingScored):
        members["excluded"] = error.excluded
    if context.request_id is not None:
        members["request_id"] = context.request_id
        headers["x-request-id"] = header_text(context.request_id)
    if context.model is not None:
        headers["x-model-version"] = header_text(context.model)
    _log(kind, error, instance=context.instance, path=scope["path"])
    return _response(kind, _detail(kind, error), context.instance, members, headers)


def not_ready(detail: str, state: dict[str, Any]) -> Response:
    """The response of /ready while it is not: a problem that also has the members of `state`."""
    return _response(NOT_READY, detail, _new_instance(), state, {"retry-after": "1"})


def to_litestar(response: Response) -> litestar.Response[bytes]:
    """The same as a response of Litestar's."""
    return litestar.Response(
        response.body,
        status_code=response.status,
        media_type=response.headers["content-type"],
        headers={name: value for name, value in response.headers.items() if name != "content-type"},
    )


def _response(kind: Kind, detail: str, instance: str, members: dict[str, Any], headers: dict[str, str]) -> Response:
    body = {
        "type": TYPE_PREFIX + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": instance,
        **members,
    }
    headers = {"content-type": MEDIA_TYPE, "cache-control": "no-store", **headers}
    return Response(kind.status, headers, msgspec.json.encode(body))


def _new_instance() -> str:
    return f"urn:uuid:{uuid.uuid4()}"


def _kind(error: Exception) -> Kind:
    for each in type(error).__mro__:
        if each in BY_ERROR:
            return BY_ERROR[each]
    if isinstance(error, HTTPException):  # Litestar's own
        if error.status_code in BY_STATUS:
            return BY_STATUS[error.status_code]
        if 400 <= error.status_code < 500:
            return BAD_REQUEST
    return INTERNAL


def _headers(kind: Kind, error: Exception) -> dict[str, str]:
    headers: dict[str, str] = {}
    if kind.status == 503:
        headers["retry-after"] = str(getattr(error, "retry_after_s", 1))
    match error:
        case MethodNotAllowed():
            headers["allow"] = error.allowed
        case HTTPException() if error.headers:
            headers |= {name.lower(): value for name, value in error.headers.items() if name.lower() == "allow"}
        case KeyNeeded():
            headers["www-authenticate"] = "Bearer"
        case BodyEncoded():
            headers["accept-encoding"] = "identity"  # RFC 9110, 15.5.16
        case BodyTooSlow() | UpgradeRequested():  # the rest of the body must not be read as the next request
            headers["connection"] = "close"
    return headers


def _detail(kind: Kind, error: Exception) -> str:
    if kind.detail is not None:
        return kind.detail
    return str(error) if isinstance(error, ServingError) else f"{kind.title}."


def _log(kind: Kind, error: Exception, **facts: Any) -> None:
    facts |= {"problem": kind.name, "status": kind.status}
    if isinstance(error, PredictionFailed):
        # The model's own message may quote feature values, so the log gets only where it was raised.
        at = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
        log.error("request_failed", reason=str(error), at=[f"{f.filename}:{f.lineno} {f.name}" for f in at], **facts)
    elif isinstance(error, FeatureStoreError):
        log.error("request_failed", reason=str(error), **facts)
    elif kind is INTERNAL:
        log.error("request_failed", exc_info=error, **facts)
