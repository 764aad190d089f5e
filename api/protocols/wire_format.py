"""The interface of a wire format to the endpoint."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from api.errors import InvalidHeader
from api.model.request_types import MAX_REQUEST_ID
from api.protocols.operation import Bodies, Operation
from api.protocols.problems import Problem
from api.protocols.response import Headers, Response
from api.protocols.scoring import Scoring
from api.telemetry.request_context import RequestContext


class Call(NamedTuple):
    """A scoring request whose body has arrived."""

    parameters: Mapping[str, str]
    """Parameters of the path, decoded."""
    headers: Headers
    body: bytes
    context: RequestContext
    disconnected: Callable[[], Awaitable[Any]]
    """Returns once the client has closed the connection."""


class WireFormat(Protocol):
    """Reads the requests to its paths and writes their responses. Used on the event loop.

    The endpoint has checked the host, the method and the API key before, and adds the headers X-Request-Id and
    X-Model-Version to each response for which they are known.
    """

    def check_headers(self, headers: Headers) -> int:
        """Check the headers Content-Type and Accept. Return the maximum size of a body with these headers, in bytes.

        Called before the body is read, so that a client that gets 415 or 406 need not send it.
        Only a few requests with a limit above SERVING_MAX_BODY_BYTES are admitted at once (`Scoring.bulk`).

        Raises:
            UnsupportedMediaType: the body's media type is not one of this format.
            NotAcceptable: no media type of the response is accepted.
        """

    async def respond(self, call: Call, scoring: Scoring) -> Response:
        """Score a request and return the 200 response.

        Raises:
            Exception: any error of the request, or of scoring, which `problem` puts into a response.
        """

    def problem(self, problem: Problem, headers: list[tuple[bytes, bytes]]) -> Response:
        """Return the response for a problem in this format's own form.

        Args:
            problem: the facts that the client may see.
            headers: of any response with this problem; the content type is not among them.
        """

    def operation(self, path: str, bodies: Bodies, /) -> Operation:
        """Describe POST to `path` for the OpenAPI document.

        Args:
            path: one of this format's paths, as in `wire_formats`.
            bodies: the current model's. `bodies.schema` adds the types of this format's own bodies to the document.
        """


def request_id_of(headers: Headers) -> str:
    """Return the id of a request that has none in its body: the header X-Request-Id, or else a new one.

    Raises:
        InvalidHeader: it is longer than MAX_REQUEST_ID.
    """
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    if len(given) > MAX_REQUEST_ID:
        raise InvalidHeader("X-Request-Id", f"it has more than {MAX_REQUEST_ID} characters")
    return given or secrets.token_hex(16)
