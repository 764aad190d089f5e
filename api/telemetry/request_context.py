"""What is known of a request: collected on its way, reported at its end in its log line, its metrics and its trace."""

from typing import TYPE_CHECKING, cast

import msgspec
from litestar.types import Scope

if TYPE_CHECKING:
    from api.inference.micro_batch import PendingRequest

KEY = "serving_context"


class RequestContext(msgspec.Struct):
    """Holds no body and no header."""

    request_id: str | None = None
    model: str | None = None
    problem: str | None = None
    instance: str | None = None
    pending: "PendingRequest | None" = None

    @classmethod
    def of(cls, scope: Scope) -> "RequestContext":
        """The context of the request with this ASGI scope; a new one if it has none yet."""
        return cast("RequestContext", scope["state"].setdefault(KEY, cls()))

    def facts(self) -> dict[str, object]:
        """What is known, by its name in the log."""
        facts: dict[str, object] = {}
        if self.request_id is not None:
            facts["request_id"] = self.request_id
        if self.model is not None:
            facts["model"] = self.model
        if self.problem is not None:
            facts["problem"] = self.problem
            facts["instance"] = self.instance
        return facts
