"""Errors between the arrival of a request and its response, besides those that scoring itself raises.

ServingError (scoring.errors)
├── RequestError             the client must change the request
│   ├── InvalidHost          the header Host has characters that no host name has
│   ├── RouteNotFound        no route has this path
│   ├── ModelNotServed       the path names another model or version than the one that serves
│   ├── MethodNotAllowed     the path does not accept this method
│   ├── KeyNeeded            no API key, or an unknown one
│   ├── NotSigned            a webhook delivery without a valid, recent signature
│   ├── InvalidHeader        a header of the request has an unusable value
│   ├── UnsupportedMediaType the body's media type is not one that the path accepts
│   │   └── NotJson          the path accepts only JSON
│   ├── NotAcceptable        the path answers in none of the media types that the client accepts
│   ├── BodyEncoded          the body is compressed
│   ├── BodyTooLarge         the body is larger than allowed
│   ├── BodyTooSlow          the body did not arrive in time
│   ├── ClientLeft           the client closed the connection
│   ├── UpgradeRequested     the client wants to switch to another protocol
│   ├── MalformedBody        the body is not valid JSON, or not valid in its media type
│   ├── InvalidRequest       the body is valid, but not a request for this model
│   ├── NotRanked            the model has no number by which entities could be ranked
│   └── NothingScored        every entity was excluded
└── Unavailable              the same request may succeed later
    ├── NoModel              no model version is loaded yet
    ├── NotReady             the model or the feature store is not usable, or the process is stopping
    ├── Overloaded           too many requests, or large requests, are unfinished
    ├── StoreUnavailable     the feature store failed several times in a row, or has not answered yet
    └── DeadlineExceeded     the response took too long
"""

from collections.abc import Sequence
from typing import Any

from scoring.errors import ServingError
from scoring.models.outputs import Outputs
from scoring.models.tags import OUTPUTS_TAG, RANK_BY_TAG


class RequestError(ServingError):
    """A request that will not succeed, however often it is sent."""


class InvalidHost(RequestError):
    """The header Host has characters that no host name has."""

    def __init__(self) -> None:
        super().__init__("The header Host is not a valid host name.")


class RouteNotFound(RequestError):
    """No route has this path; `routes` lists those that exist, each with its method."""

    def __init__(self, routes: Sequence[str]) -> None:
        super().__init__(f"No route has this path. The routes are {', '.join(routes)}.")


class ModelNotServed(RequestError):
    """The path names the model or version `given`, and `served` is the only one."""

    def __init__(self, given: str, served: str) -> None:
        super().__init__(f"{given[:100]!r} is not served here. This server serves {served!r}.")


class MethodNotAllowed(RequestError):
    """The path does not accept this method; `allowed` lists the accepted ones, as in the header Allow."""

    def __init__(self, allowed: str) -> None:
        self.allowed = allowed
        super().__init__(f"This path accepts only the methods {allowed}.")


class KeyNeeded(RequestError):
    """The request has no API key, or an unknown one."""

    def __init__(self) -> None:
        super().__init__("An API key is required: send it in the header Authorization: Bearer <key>.")


class NotSigned(RequestError):
    """A webhook delivery has no valid, recent signature made with our secret."""

    def __init__(self) -> None:
        super().__init__("The delivery has no valid, recent signature.")


class InvalidHeader(RequestError):
    """A header of the request has an unusable value; `problem` says why, without quoting it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"The header {name} can't be used: {problem}.")


class UnsupportedMediaType(RequestError):
    """The body is not declared as one of the media types in `accepted`."""

    def __init__(self, accepted: Sequence[str]) -> None:
        super().__init__(
            f"The body's media type is not supported: send the header Content-Type: {' or '.join(accepted)}."
        )


class NotJson(UnsupportedMediaType):
    """The body is not declared as JSON, the only media type that the path accepts."""

    def __init__(self) -> None:
        RequestError.__init__(self, "The body must be JSON: send the header Content-Type: application/json.")


class NotAcceptable(RequestError):
    """The header Accept excludes all the media types in `offered`."""

    def __init__(self, offered: Sequence[str]) -> None:
        super().__init__(f"None of the media types of the response satisfies the header Accept: {', '.join(offered)}.")


class BodyEncoded(RequestError):
    """The body is compressed, or encoded in another way."""

    def __init__(self) -> None:
        super().__init__("Send the body uncompressed, without the header Content-Encoding (only identity is accepted).")


class BodyTooLarge(RequestError):
    """The body is larger than allowed; `when` says at which stage, if not as it was sent."""

    def __init__(self, max_bytes: int, when: str = "") -> None:
        super().__init__(f"The body is larger than {max_bytes} bytes{when and ' '}{when}.")


class BodyTooSlow(RequestError):
    """The body did not arrive in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(f"The body did not arrive within {timeout_s:g} s.")


class ClientLeft(RequestError):
    """The client closed the connection, so nobody reads the response."""

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class UpgradeRequested(RequestError):
    """The client wants to switch to another protocol than HTTP/1.1, as `curl --http2` does."""

    def __init__(self) -> None:
        super().__init__("This server speaks HTTP/1.1 only: send the request without the header Upgrade.")


class MalformedBody(RequestError):
    """The body is not valid in its `form`, for example JSON; `problem` says why, without quoting it."""

    def __init__(self, problem: str, form: str = "JSON") -> None:
        super().__init__(f"The body is not valid {form}: {problem}.")


class InvalidRequest(RequestError):
    """The body is valid, but not a request for the current model version; `example` is a valid request."""

    def __init__(self, problem: str, expected: str, example: dict[str, Any]) -> None:
        self.example = example
        super().__init__(f"{problem}. {expected}")


class NotRanked(RequestError):
    """The model has no single number, and no tag chooses one of its `outputs`, by which entities could be ranked."""

    def __init__(self, outputs: Outputs) -> None:
        names = ", ".join(repr(column.name) for column in outputs.columns if column.numeric)
        remedy = f"set the version's tag {RANK_BY_TAG} to one of its outputs that are numbers ({names})"
        if not names:
            remedy = f"its outputs are not numbers (a classifier's tag {OUTPUTS_TAG} may add predict_proba)"
        super().__init__(f"The model has no output to rank entities by: {remedy}. POST /scores works without it.")


class NothingScored(RequestError):
    """No entity could be scored; `excluded` lists each with its reason, in request order."""

    def __init__(self, excluded: list[Any]) -> None:
        self.excluded = excluded
        super().__init__("No entity of the request could be scored.")


class Unavailable(ServingError):
    """The request failed; the client may send it again after `retry_after_s` seconds."""

    retry_after_s = 1


class NoModel(Unavailable):
    """No model version is loaded yet; `reason` is the cause."""

    retry_after_s = 5

    def __init__(self, reason: str) -> None:
        super().__init__(f"No model version serves yet: {reason}")


class NotReady(Unavailable):
    """The process should get no requests now; the message says why."""


class Overloaded(Unavailable):
    """The number of unfinished requests, or that of unfinished large requests, has reached its limit."""

    def __init__(self) -> None:
        super().__init__("Too many requests are in progress. Try again later.")


class StoreUnavailable(Unavailable):
    """The request was not sent to the feature store, which failed several times in a row or has not answered yet."""

    def __init__(self) -> None:
        super().__init__("Features can't be read at the moment.")


class DeadlineExceeded(Unavailable):
    """The feature store or the model took longer than a request may take."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"The request was not completed within {deadline_s:g} s.")
