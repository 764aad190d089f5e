"""What is told of one request when it is over: in its log line, its metrics and its trace."""

from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from api.inference.stages import PendingRequest

KEY = "serving_note"


class RequestContext(msgspec.Struct):
    """Filled in on the way. Holds no body and no header."""

    request_id: str | None = None
    model: str | None = None
    problem: str | None = None
    instance: str | None = None
    asked: "PendingRequest | None" = None

    @classmethod
    def of(cls, state: dict[str, Any]) -> "RequestContext":
        """The context of the request with this ASGI state; a new one where there is none yet."""
        context: RequestContext | None = state.get(KEY)
        if context is None:
            context = state[KEY] = cls()
        return context

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
