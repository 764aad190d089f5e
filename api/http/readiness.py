"""Whether this process should get requests, and what an operator needs to know where it should not."""

import threading
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import MediaType, Response

from api.http.answers import model_answer
from api.http.problems import not_ready, to_litestar
from api.model.model_slot import ModelSlot
from api.model.store_health import StoreProbe
from scoring.settings import Settings


def readiness(settings: Settings, slot: ModelSlot, probe: StoreProbe, stopping: threading.Event) -> dict[str, Any]:
    """The state of model, registry and feature store; member `problem` is None where requests have all they need."""
    served, refusal, store = slot.served, slot.refusal, probe.state
    problem = None
    if stopping.is_set():
        problem = "This process was told to stop."
    elif served is None:
        problem = f"No model version serves yet: {slot.why_empty()}"
    elif not store.usable:
        problem = store.problem
    age_s = slot.poll_age_s()
    return {
        "ready": problem is None,
        "problem": problem,
        "alias": f"{settings.model_name}@{settings.model_alias}",
        "model": {**model_answer(served), "feature_service": served.scorer.features.service} if served else None,
        "registry": {"last_answer_age_s": None if age_s is None else round(age_s, 3), "problem": slot.poll_problem},
        "refused": {
            "model": str(refusal.target.version),
            "reason": refusal.public,
            "fault_of": "this_machine" if refusal.of_this_machine else "version",
            "attempts": refusal.attempts,
            "next_attempt_in_s": round(max(0.0, refusal.retry_at - slot.clock()), 3),
        }
        if refusal
        else None,
        "feature_store": {
            "usable": store.usable,
            "problem": store.problem,
            "last_answer_age_s": _age_s(store.answered_at),
        },
    }


def readiness_response(state: dict[str, Any]) -> Response[Any]:
    """200 with the state, or a 503 problem that has the same members."""
    problem = state.pop("problem")
    if problem is None:
        return Response(msgspec.json.encode(state), media_type=MediaType.JSON, headers={"Cache-Control": "no-store"})
    return to_litestar(not_ready(problem, state))


def _age_s(moment: datetime | None) -> float | None:
    return None if moment is None else round((datetime.now(UTC) - moment).total_seconds(), 3)
