"""Every error as an RFC 9457 problem: the only place that knows which error is which HTTP status."""

import traceback
import uuid
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from api.errors import (
    BodyEncoded,
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    DeadlineExceeded,
    InvalidRequest,
    KeyNeeded,
    MalformedBody,
    NoModel,
    NothingScored,
    NotJson,
    NotSigned,
    Overloaded,
    StoreUnavailable,
    Unavailable,
    UpgradeAsked,
)
from api.model.header_text import header_text
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
    """One kind of problem, as its type URI, status and title tell it."""

    name: str
    status: int
    title: str
    detail: str | None = None
    """What a client reads instead of the error's own text, where that speaks of our own parts."""


NOT_FOUND = Kind("not-found", 404, "There is nothing at this address")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "This address does not take this method")
BODY_TOO_LARGE = Kind("body-too-large", 413, "The body is too large")
BAD_REQUEST = Kind("bad-request", 400, "The request is malformed")
NOT_READY = Kind("not-ready", 503, "Not ready to serve")
INTERNAL = Kind("internal-error", 500, "Something went wrong here", "The log holds more under this problem's instance.")

UNUSABLE = Kind(
    "unusable-feature", 500, "A feature is not what it is declared to be", "The log holds more under this instance."
)
STORE_FAILED = Kind("feature-store-failed", 503, "The feature store failed", "Features can't be read now.")

BY_ERROR: dict[type[Exception], Kind] = {
    KeyNeeded: Kind("key-needed", 401, "A key is needed"),
    NotSigned: Kind("not-signed", 401, "The delivery is not signed"),
    BodyTooLarge: BODY_TOO_LARGE,
    BodyTooSlow: Kind("body-too-slow", 408, "The body took too long"),
    NotJson: Kind("not-json", 415, "The body is not declared as JSON"),
    BodyEncoded: Kind("body-encoded", 415, "The body is compressed"),
    MalformedBody: Kind("malformed-body", 400, "The body is no JSON text"),
    ClientLeft: BAD_REQUEST,
    UpgradeAsked: BAD_REQUEST,
    InvalidRequest: Kind("invalid-request", 422, "This is not a request that the model can answer"),
    EntityRowsError: Kind("invalid-request", 422, "This is not a request that the model can answer"),
    NothingScored: Kind("nothing-scored", 422, "No entity could be scored"),
    FeaturesRejected: Kind("features-rejected", 422, "An entity lacks features"),
    # /ready says why, with addresses and names that are an operator's business.
    NoModel: Kind("no-model", 503, "No model serves yet", "No model version serves yet; /ready says why."),
    Overloaded: Kind("overloaded", 503, "Too many requests"),
    DeadlineExceeded: Kind("deadline-exceeded", 503, "No answer in time"),
    StoreUnavailable: STORE_FAILED,
    FeatureStoreError: STORE_FAILED,
    UnusableFeature: UNUSABLE,
    PredictionFailed: Kind("prediction-failed", 500, "The model failed", "The model failed on this request."),
}
BY_STATUS = {kind.status: kind for kind in (NOT_FOUND, METHOD_NOT_ALLOWED, BODY_TOO_LARGE)}
KINDS = tuple(dict.fromkeys((*BY_ERROR.values(), *BY_STATUS.values(), BAD_REQUEST, NOT_READY, INTERNAL)))


def to_problem(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """The response for any error that a request led to. What went wrong on our side gets a line of its own in the log.

    `instance` is new for each problem and stands in the log, at least in the request's own line. No body holds feature
    values, a stack trace or the text of an error that was not made for clients.
    """
    kind = _kind(error)
    instance = f"urn:uuid:{uuid.uuid4()}"
    members: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, NothingScored):
        members["excluded"] = error.excluded
    if isinstance(error, Unavailable | FeatureStoreError) and kind is not UNUSABLE:  # which no waiting mends
        headers["Retry-After"] = str(getattr(error, "retry_after_s", 1))
    if isinstance(error, HTTPException) and error.headers:
        headers |= {name: value for name, value in error.headers.items() if name.lower() == "allow"}
    if isinstance(error, KeyNeeded):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyEncoded):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, 15.5.16
    if isinstance(error, BodyTooSlow | UpgradeAsked):  # what is still to come of it must not be read as a request
        headers["Connection"] = "close"
    context = RequestContext.of(request.scope["state"])
    context.problem, context.instance = kind.name, instance
    if context.request_id is not None:
        members["request_id"] = context.request_id
        headers["X-Request-Id"] = header_text(context.request_id)
    if context.model is not None:
        headers["X-Model-Version"] = header_text(context.model)
    _log(kind, instance, request, error)
    return problem_response(kind, _detail(kind, error), instance, members, headers)


def problem_response(
    kind: Kind, detail: str, instance: str, members: dict[str, Any], headers: dict[str, str]
) -> Response[Any]:
    """A problem as a response; `members` are added to those that RFC 9457 names."""
    body = {
        "type": TYPE_PREFIX + kind.name,
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        "instance": instance,
        **members,
    }
    return Response(
        msgspec.json.encode(body),
        status_code=kind.status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **headers},
    )


def _kind(error: Exception) -> Kind:
    for kind in (BY_ERROR.get(each) for each in type(error).__mro__):
        if kind is not None:
            return kind
    if isinstance(error, HTTPException):
        if error.status_code in BY_STATUS:
            return BY_STATUS[error.status_code]
        if 400 <= error.status_code < 500:
            return BAD_REQUEST
    return INTERNAL


def _detail(kind: Kind, error: Exception) -> str:
    if kind.detail is not None:
        return kind.detail
    if isinstance(error, ServingError):
        return str(error)
    return kind.title + "."


def _log(kind: Kind, instance: str, request: Request[Any, Any, Any], error: Exception) -> None:
    facts = {"problem": kind.name, "status": kind.status, "instance": instance, "path": request.scope["path"]}
    if isinstance(error, PredictionFailed):
        # A model's own words may quote feature values, so only where it failed is told.
        at = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
        log.error("request_failed", reason=str(error), at=[f"{f.filename}:{f.lineno} {f.name}" for f in at], **facts)
    elif isinstance(error, FeatureStoreError):
        log.error("request_failed", reason=str(error), **facts)
    elif kind is INTERNAL:
        log.error("request_failed", exc_info=error, **facts)
