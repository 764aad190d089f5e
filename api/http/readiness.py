"""GET /ready: whether this process should get requests, and if not, what an operator needs to know."""

import threading
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Response
from msgspec import Meta

from api.model.model_slot import ModelSlot, Refusal
from api.model.store_health import StoreProbe
from api.protocols.problems import MEDIA_TYPE, NOT_READY, TYPE_PREFIX, Problem, new_instance
from api.shadow.challenger import Challenger
from scoring.online.empty_views import empty_views_problem
from scoring.settings import Settings

UNPROVEN = (
    "It was logged without an input example, no entity of the online store could be used instead, and it has scored no "
    "request yet: log it with an input_example."
)

FeatureServiceName = Annotated[
    str, Meta(description="Its name; without a feature service, `view:feature` of each input, comma-separated.")
]


class LoadedModel(msgspec.Struct, frozen=True):
    """The model version that serves."""

    name: str
    version: int
    feature_service: FeatureServiceName
    unproven: Annotated[
        str | None, Meta(description="Why it has not been tried on real rows yet; null once it has predicted one.")
    ]


class RegistryState(msgspec.Struct, frozen=True):
    """What is known of the MLflow and Feast registries."""

    last_answer_age_s: float | None
    problem: str | None


class RefusedVersion(msgspec.Struct, frozen=True):
    """A version that the alias names and that can't serve. The previous one keeps serving."""

    model: str
    reason: str
    fault_of: Annotated[
        Literal["version", "this_machine"],
        Meta(description="`this_machine`: the version could not be tried on this machine."),
    ]
    attempts: int
    next_attempt_in_s: float


class FeatureStoreState(msgspec.Struct, frozen=True):
    """What is known of the online store."""

    usable: bool
    problem: str | None
    last_answer_age_s: float | None
    empty: Annotated[str | None, Meta(description="Names feature views without a row, and the command that fills it.")]


class ChallengerState(msgspec.Struct, frozen=True):
    """The version under the alias `challenger`, whose scores are only logged. It does not affect readiness."""

    model: str
    problem: Annotated[str | None, Meta(description="Why it can't score requests; null if it can.")]


class Readiness(msgspec.Struct, frozen=True):
    """The state of the model, the registries and the feature store."""

    ready: bool
    alias: Annotated[str, Meta(description="The followed `model@alias`.")]
    model: LoadedModel | None
    registry: RegistryState
    refused: RefusedVersion | None
    feature_store: FeatureStoreState
    challenger: ChallengerState | None = None


def readiness(
    settings: Settings,
    slot: ModelSlot,
    probe: StoreProbe,
    stopping: threading.Event,
    challenger: Challenger | None = None,
) -> tuple[Readiness, str | None]:
    """Return the state, and why the process is not ready; None if it is."""
    served, store = slot.served, probe.state
    problem = None
    if stopping.is_set():
        problem = "This process is stopping."
    elif served is None:
        problem = f"No model version serves yet: {slot.why_empty()}"
    elif not store.usable:
        problem = store.problem
    model = empty = None
    if served is not None:
        scorer, version = served.scorer, served.scorer.version
        model = LoadedModel(version.name, version.version, scorer.features.service, None if scorer.proven else UNPROVEN)
        if scorer.empty_views:
            empty = empty_views_problem(scorer.empty_views, settings)
    age_s = slot.poll_age_s()
    state = Readiness(
        problem is None,
        f"{settings.model_name}@{settings.model_alias}",
        model,
        RegistryState(None if age_s is None else round(age_s, 3), slot.poll_problem),
        _refused(slot.refusal, slot.clock()) if slot.refusal else None,
        FeatureStoreState(store.usable, store.problem, _age_s(store.answered_at), empty),
        None if challenger is None or challenger.state is None else ChallengerState(*challenger.state),
    )
    return state, problem


def readiness_response(state: Readiness, problem: str | None) -> Response[Any]:
    """Return 200 with the state, or a 503 problem that has the same members."""
    if problem is None:
        return Response(msgspec.json.encode(state), media_type=MediaType.JSON, headers={"Cache-Control": "no-store"})
    body = Problem(TYPE_PREFIX + NOT_READY.name, NOT_READY.title, NOT_READY.status, problem, new_instance())
    members = msgspec.json.encode(msgspec.to_builtins(body) | msgspec.to_builtins(state))
    headers = {"Cache-Control": "no-store", "Retry-After": "1"}
    return Response(members, status_code=NOT_READY.status, media_type=MEDIA_TYPE, headers=headers)


def _refused(refusal: Refusal, now: float) -> RefusedVersion:
    return RefusedVersion(
        str(refusal.target.version),
        refusal.public,
        "this_machine" if refusal.of_this_machine else "version",
        refusal.attempts,
        round(max(0.0, refusal.retry_at - now), 3),
    )


def _age_s(timestamp: datetime | None) -> float | None:
    return None if timestamp is None else round((datetime.now(UTC) - timestamp).total_seconds(), 3)
