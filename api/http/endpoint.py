"""The ASGI endpoint of the scoring paths, including other methods of these paths and all errors.

They bypass Litestar, which creates a task group for a handler's dependencies, a copy of the handler for each guard, and
request and response objects that parse all headers. Its router and its layers of exception handlers account for a sixth
of the remaining time (litestar 2.25, docs/adr/009).
"""

import contextlib
import functools
import string
from collections.abc import Mapping

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from api.errors import BodyEncoded, InvalidHost, MethodNotAllowed, Overloaded
from api.http.access import Keys
from api.http.messages import BodyReader, headers_of, send_response
from api.protocols.problems import problem_of
from api.protocols.response import Response, header_value
from api.protocols.scoring import Scoring
from api.protocols.wire_format import Call, WireFormat
from api.telemetry.request_context import RequestContext
from scoring.settings import Settings

METHODS = "POST, OPTIONS"
USUAL = contextlib.nullcontext()
"""The context of a request that is not one of the few large ones."""
# The characters of a valid Host, as in Litestar's own check (2.25).
HOST_CHARACTERS = f"{string.ascii_letters}{string.digits}!$&'()*+,;=-._~:[]@%".encode()


@functools.lru_cache(maxsize=2)
def _version_header(model: str) -> tuple[bytes, bytes]:
    return b"x-model-version", header_value(model)


class ScoringEndpoint:
    """ASGI application for the scoring paths that delegates all other paths to another application."""

    def __init__(
        self, other: ASGIApp, formats: Mapping[str, WireFormat], settings: Settings, keys: Keys, scoring: Scoring
    ) -> None:
        """Create the endpoint.

        Args:
            other: the application for all other paths.
            formats: path → its wire format. A segment `{name}` of a path is a parameter.
            settings: the settings of the application.
            keys: the API keys.
            scoring: scores the requests.
        """
        self._other = other
        self._formats = formats
        self._templates = [template.split("/") for template in formats if "{" in template]
        self._template = functools.lru_cache(maxsize=32)(self._find_template)  # finding it takes 10 µs
        self._keys = keys
        self._scoring = scoring
        self._bodies = BodyReader(settings.body_timeout_s)
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        path: str = scope["path"]
        parameters: dict[str, str] = {}
        if path not in self._formats:
            path, parameters = self._template(f"/{path.strip('/')}")  # without slashes at its ends, as Litestar
        if scope["type"] != ScopeType.HTTP or path not in self._formats:
            await self._other(scope, receive, send)
            return
        scope["path_template"] = path
        wire_format, context = self._formats[path], RequestContext.of(scope)
        try:
            response = await self._respond(scope, receive, wire_format, parameters, context)
        except Exception as error:
            response = wire_format.problem(*problem_of(error, scope))
        if context.request_id is not None:
            response.headers.append((b"x-request-id", header_value(context.request_id)))
        if context.model:
            response.headers.append(_version_header(context.model))
        await send_response(send, response)

    async def _respond(
        self,
        scope: HTTPScope,
        receive: Receive,
        wire_format: WireFormat,
        parameters: Mapping[str, str],
        context: RequestContext,
    ) -> Response:
        headers = headers_of(scope)
        if headers.get(b"host", b"").translate(None, HOST_CHARACTERS):
            raise InvalidHost
        if scope["method"] == "OPTIONS":
            return Response(204, [(b"allow", METHODS.encode())], b"")
        if scope["method"] != "POST":
            raise MethodNotAllowed(METHODS)
        # Check these before reading the body, so that a client that is refused need not send it.
        self._keys.check(headers.get(b"authorization"))
        if self._scoring.full:
            raise Overloaded
        max_bytes = wire_format.check_headers(headers)
        if headers.get(b"content-encoding", b"").strip().lower() not in {b"", b"identity"}:
            raise BodyEncoded
        with self._scoring.bulk(context) if max_bytes > self._max_body_bytes else USUAL:
            body = await self._bodies.read(scope, headers, receive, max_bytes)
            return await wire_format.respond(
                Call(parameters, headers, body, context, disconnected=receive), self._scoring
            )

    def _find_template(self, path: str) -> tuple[str, dict[str, str]]:
        """Return the template of a path and its parameters, or the path itself if it matches no template."""
        parts = path.split("/")
        for template in self._templates:
            if len(template) == len(parts):
                pairs = list(zip(template, parts, strict=True))
                if all(part and (name.startswith("{") or name == part) for name, part in pairs[1:]):
                    return "/".join(template), {name[1:-1]: part for name, part in pairs if name.startswith("{")}
        return path, {}
