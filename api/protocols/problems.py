"""Errors as RFC 9457 problems. The only module that maps errors to HTTP statuses; a format may replace a status."""

import traceback
import uuid
from typing import Annotated, Any

import msgspec
import structlog
from litestar.exceptions import HTTPException
from litestar.types import Scope
from msgspec import Meta

from api.errors import (
    BodyEncoded,
    BodyTooLarge,
    BodyTooSlow,
    ClientLeft,
    DeadlineExceeded,
    InvalidHeader,
    InvalidHost,
    InvalidRequest,
    KeyNeeded,
    MalformedBody,
    MethodNotAllowed,
    ModelNotServed,
    NoModel,
    NotAcceptable,
    NothingScored,
    NotJson,
    NotRanked,
    NotReady,
    NotSigned,
    Overloaded,
    RouteNotFound,
    StoreUnavailable,
    UnsupportedMediaType,
    UpgradeRequested,
)
from api.protocols.response import Response
from api.telemetry.request_context import RequestContext
from scoring.errors import (
    FeaturesRejected,
    FeatureStoreError,
    PredictionFailed,
    ServingError,
    UnusableFeature,
)

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:model-serving:problem:"


class ProblemType(msgspec.Struct, frozen=True):
    """A type of problem."""

    name: str
    """The last part of its `type`."""
    status: int
    title: str
    detail: str | None = None
    """The detail for clients, if the error's own message is for operators."""


NOT_FOUND = ProblemType("not-found", 404, "Not found")
BODY_TOO_LARGE = ProblemType("body-too-large", 413, "Body too large")
BAD_REQUEST = ProblemType("bad-request", 400, "Malformed request")
NOT_READY = ProblemType("not-ready", 503, "Not ready")
SEE_LOG = "The log has details under this problem's instance."
INTERNAL = ProblemType("internal-error", 500, "Internal error", SEE_LOG)
STORE_FAILED = ProblemType("feature-store-failed", 503, "Feature store failed", "Features can't be read at the moment.")

TYPE_OF_ERROR: dict[type[Exception], ProblemType] = {
    KeyNeeded: ProblemType("key-needed", 401, "API key needed"),
    NotSigned: ProblemType("not-signed", 401, "Delivery not signed"),
    BodyTooLarge: BODY_TOO_LARGE,
    BodyTooSlow: ProblemType("body-too-slow", 408, "Body too slow"),
    NotJson: ProblemType("not-json", 415, "Body not declared as JSON"),
    UnsupportedMediaType: ProblemType("unsupported-media-type", 415, "Unsupported media type"),
    NotAcceptable: ProblemType("not-acceptable", 406, "Not acceptable"),
    BodyEncoded: ProblemType("body-encoded", 415, "Body compressed"),
    MalformedBody: ProblemType("malformed-body", 400, "Malformed body"),
    ClientLeft: BAD_REQUEST,
    InvalidHost: BAD_REQUEST,
    InvalidHeader: BAD_REQUEST,
    UpgradeRequested: BAD_REQUEST,
    RouteNotFound: NOT_FOUND,
    ModelNotServed: ProblemType("model-not-served", 404, "Model not served"),
    MethodNotAllowed: ProblemType("method-not-allowed", 405, "Method not allowed"),
    InvalidRequest: ProblemType("invalid-request", 422, "Invalid request"),
    NotRanked: ProblemType("not-ranked", 422, "No output to rank by"),
    NothingScored: ProblemType("nothing-scored", 422, "No entity could be scored"),
    FeaturesRejected: ProblemType("features-rejected", 422, "Features missing"),
    # /ready gives the reason, with names that are for operators only.
    NoModel: ProblemType(
        "no-model", 503, "No model serves yet", "No model version serves yet: see /ready for the reason."
    ),
    NotReady: NOT_READY,
    Overloaded: ProblemType("overloaded", 503, "Too many requests"),
    DeadlineExceeded: ProblemType("deadline-exceeded", 503, "Deadline exceeded"),
    StoreUnavailable: STORE_FAILED,
    FeatureStoreError: STORE_FAILED,
    UnusableFeature: ProblemType("unusable-feature", 500, "Unusable feature value", SEE_LOG),
    PredictionFailed: ProblemType("prediction-failed", 500, "Prediction failed", "The model failed on this request."),
}
PROBLEM_TYPES = tuple(dict.fromkeys((*TYPE_OF_ERROR.values(), INTERNAL)))
TYPES = sorted({TYPE_PREFIX + kind.name for kind in PROBLEM_TYPES})
CONTENT_TYPE = (b"content-type", MEDIA_TYPE.encode())
NO_STORE = (b"cache-control", b"no-store")


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An RFC 9457 problem."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri", "enum": TYPES})]
    title: str
    status: int
    detail: str
    instance: Annotated[
        str, Meta(description="Identifies this occurrence, also in the log.", extra_json_schema={"format": "uri"})
    ]
    excluded: Annotated[list[Any], Meta(extra_json_schema={"items": {"$ref": "#/components/schemas/Excluded"}})] = []
    request_id: Annotated[str | None, Meta(description="The request's own id, if it could be read.")] = None
    example: Annotated[Any, Meta(description="A valid request, if the body was not one.")] = None


def problem_of(error: Exception, scope: Scope) -> tuple[Problem, list[tuple[bytes, bytes]]]:
    """Return the problem for an error, without anything that is not meant for clients, and the response's headers.

    Each problem has a unique `instance`, which the log has, too. Failures of the server also get a log line of their
    own. No problem contains feature values, a stack trace or a message that was not written for clients.
    """
    kind, context = type_of(error), RequestContext.of(scope)
    context.problem, context.instance = kind.name, new_instance()
    _log(kind, error, instance=context.instance, path=scope["path"])
    problem = Problem(
        TYPE_PREFIX + kind.name,
        kind.title,
        kind.status,
        _detail(kind, error),
        context.instance,
        excluded=error.excluded if isinstance(error, NothingScored) else [],
        request_id=context.request_id,
        example=error.example if isinstance(error, InvalidRequest) else None,
    )
    return problem, _headers(kind, error)


def problem_response(problem: Problem, headers: list[tuple[bytes, bytes]]) -> Response:
    """Return the response of `application/problem+json`."""
    return Response(problem.status, [CONTENT_TYPE, *headers], msgspec.json.encode(problem))


def new_instance() -> str:
    """Return a new id of a problem."""
    return f"urn:uuid:{uuid.uuid4()}"


def type_of(error: Exception) -> ProblemType:
    """Return the type of problem that an error is for the client."""
    for each in type(error).__mro__:
        if each in TYPE_OF_ERROR:
            return TYPE_OF_ERROR[each]
    if isinstance(error, HTTPException):  # Litestar's own
        if error.status_code == BODY_TOO_LARGE.status:
            return BODY_TOO_LARGE
        if 400 <= error.status_code < 500:
            return BAD_REQUEST
    return INTERNAL


def _headers(kind: ProblemType, error: Exception) -> list[tuple[bytes, bytes]]:
    headers = [NO_STORE]
    if kind.status == 503:
        headers.append((b"retry-after", b"%d" % getattr(error, "retry_after_s", 1)))
    match error:
        case MethodNotAllowed():
            headers.append((b"allow", error.allowed.encode()))
        case KeyNeeded():
            headers.append((b"www-authenticate", b"Bearer"))
        case BodyEncoded():
            headers.append((b"accept-encoding", b"identity"))  # RFC 9110, 15.5.16
        case BodyTooSlow() | UpgradeRequested():  # the rest of the body must not be read as the next request
            headers.append((b"connection", b"close"))
    return headers


def _detail(kind: ProblemType, error: Exception) -> str:
    if kind.detail is not None:
        return kind.detail
    return str(error) if isinstance(error, ServingError) else f"{kind.title}."


def _log(kind: ProblemType, error: Exception, **facts: Any) -> None:
    facts |= {"problem": kind.name, "status": kind.status}
    if isinstance(error, PredictionFailed):
        # The model's own message may quote feature values, so the log gets only the place where it was raised.
        at = traceback.extract_tb(error.__cause__.__traceback__) if error.__cause__ else []
        log.error("request_failed", reason=str(error), at=[f"{f.filename}:{f.lineno} {f.name}" for f in at], **facts)
    elif isinstance(error, FeatureStoreError):
        log.error("request_failed", reason=str(error), **facts)
    elif kind is INTERNAL:
        log.error("request_failed", exc_info=error, **facts)
