"""What can go wrong between a request's arrival and its answer, beside what scoring itself raises.

ServingError (scoring.errors)
├── RequestError             the client can mend it
│   ├── NotJson              another content type
│   ├── BodyEncoded          the body is compressed
│   ├── MalformedBody        the body is no JSON text
│   ├── InvalidRequest       JSON, but not the request that this model needs
│   ├── KeyNeeded            no key, or another one
│   ├── NotSigned            a webhook's delivery that its sender did not sign, or too long ago
│   ├── BodyTooLarge         the body is longer than it may be
│   ├── BodyTooSlow          the body did not arrive in time
│   ├── UpgradeAsked         the body comes with the wish to go on in another protocol
│   ├── NothingScored        every entity was excluded
│   └── ClientLeft           it closed the connection before its body was complete
└── Unavailable              a later attempt may succeed
    ├── NoModel              no version serves yet
    ├── Overloaded           as many requests wait as may wait
    ├── StoreUnavailable     the feature store failed several times running
    └── DeadlineExceeded     it took too long
"""

from typing import Any

from scoring.errors import ServingError


class RequestError(ServingError):
    """A request that can't be answered, whoever asks and whenever."""


class NotJson(RequestError):
    """The body is declared to be something else than JSON."""

    def __init__(self) -> None:
        super().__init__("The body must be JSON: send it with the header Content-Type: application/json.")


class BodyEncoded(RequestError):
    """The body is compressed, or encoded in another way."""

    def __init__(self) -> None:
        super().__init__(
            "The body must be sent as it is, without the header Content-Encoding (identity alone is taken)."
        )


class MalformedBody(RequestError):
    """The body is no JSON text; `problem` says why, without quoting it."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"The body is no JSON text: {problem}.")


class InvalidRequest(RequestError):
    """The body is JSON but not the request that the model which serves needs."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}.")


class NothingScored(RequestError):
    """No entity could be scored; `excluded` names each with its reason, in request order."""

    def __init__(self, excluded: list[dict[str, Any]]) -> None:
        self.excluded = excluded
        super().__init__(f"None of the {len(excluded)} entities could be scored.")


class KeyNeeded(RequestError):
    """The caller has shown no key, or one that does not fit."""

    def __init__(self) -> None:
        super().__init__("A key is needed: send it with the header Authorization: Bearer <key>.")


class NotSigned(RequestError):
    """A webhook's delivery lacks a fresh signature made with our secret."""

    def __init__(self) -> None:
        super().__init__("The delivery is not signed as it must be.")


class BodyTooLarge(RequestError):
    """The body is longer than it may be."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"The body is longer than {most_bytes} bytes.")


class BodyTooSlow(RequestError):
    """The body did not arrive completely within its time."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(f"The body did not arrive within {limit_s:g} s.")


class UpgradeAsked(RequestError):
    """The client wants to go on in another protocol than HTTP/1.1, as `curl --http2` does."""

    def __init__(self) -> None:
        super().__init__("This server speaks HTTP/1.1 alone: send the request without the header Upgrade.")


class ClientLeft(RequestError):
    """The client closed the connection before its body was complete, so nobody reads the answer."""

    def __init__(self) -> None:
        super().__init__("The connection was closed before the body was complete.")


class Unavailable(ServingError):
    """The request was not answered and may be sent again, after `retry_after_s` seconds."""

    retry_after_s = 1


class NoModel(Unavailable):
    """No model version serves yet; `reason` says why."""

    retry_after_s = 5

    def __init__(self, reason: str) -> None:
        super().__init__(f"No model version serves yet: {reason}")


class Overloaded(Unavailable):
    """As many requests are in work and waiting as the settings allow."""

    def __init__(self) -> None:
        super().__init__("Too many requests are waiting.")


class StoreUnavailable(Unavailable):
    """The feature store failed several times running, so it was not asked."""

    def __init__(self) -> None:
        super().__init__("Features can't be read now.")


class DeadlineExceeded(Unavailable):
    """The feature store or the model took longer than a request may take."""

    def __init__(self, deadline_s: float) -> None:
        super().__init__(f"There was no answer within {deadline_s:g} s.")
