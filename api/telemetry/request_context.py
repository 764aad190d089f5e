"""The known facts about a request: collected while it is processed, then used in its log line and its trace."""

from typing import TYPE_CHECKING, cast

import msgspec
from litestar.types import Scope

if TYPE_CHECKING:
    from api.inference.micro_batch import PendingRequest

KEY = "serving_context"


class RequestContext(msgspec.Struct):
    """Facts about one request, in its ASGI state. Contains no body and no header."""

    request_id: str | None = None
    model: str = ""
    problem: str | None = None
    instance: str | None = None
    pending: "PendingRequest | None" = None

    @classmethod
    def start(cls, scope: Scope) -> None:
        """Give a request an empty context."""
        scope["state"][KEY] = cls()

    @classmethod
    def of(cls, scope: Scope) -> "RequestContext":
        """Return the context of a request."""
        return cast("RequestContext", scope["state"][KEY])

    def facts(self) -> dict[str, object]:
        """Return the known facts by their names in the log."""
        facts: dict[str, object] = {}
        if self.request_id is not None:
            facts["request_id"] = self.request_id
        if self.model:
            facts["model"] = self.model
        if self.problem is not None:
            facts["problem"] = self.problem
            facts["instance"] = self.instance
        return facts
