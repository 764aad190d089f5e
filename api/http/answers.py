"""Scores as the answers to POST /inference and POST /scores. Pure: no request, no header."""

from typing import Any

from api.errors import NothingScored
from api.model.model_slot import Served
from api.model.request_schema import EntityRequest
from api.model.scorer import RowScores
from scoring.predict import IMPUTED
from scoring.settings import MissingFeaturesPolicy


def inference_answer(
    served: Served, request: EntityRequest, scores: RowScores, policy: MissingFeaturesPolicy
) -> dict[str, Any]:
    """The entity with the highest prediction; of equals, the one that the request names first.

    Raises:
        NothingScored: no entity has a prediction.
    """
    scored = [value for value in scores.values if value is not None]
    excluded = []
    if len(scored) < len(scores.values):
        excluded = [
            {**served.form.entity(request, row), "reason": scores.reasons[row]}
            for row, value in enumerate(scores.values)
            if value is None
        ]
    if not scored:
        raise NothingScored(excluded)
    highest = max(scored)
    return {
        "request_id": request.request_id,
        "prediction": served.form.choice(request, scores.values.index(highest)),
        "score": highest,
        "model": model_answer(served),
        "excluded": excluded,
        **_imputed(served, request, scores.reasons, policy),
        "error": None,
    }


def scores_answer(
    served: Served, request: EntityRequest, scores: RowScores, policy: MissingFeaturesPolicy
) -> dict[str, Any]:
    """One score an entity, in request order: null, with a reason, where there is none."""
    return {
        "request_id": request.request_id,
        "model": model_answer(served),
        "scores": [
            {
                **served.form.entity(request, row),
                "score": value,
                "reason": scores.reasons[row] if value is None else None,
            }
            for row, value in enumerate(scores.values)
        ],
        **_imputed(served, request, scores.reasons, policy),
    }


def model_answer(served: Served) -> dict[str, Any]:
    """Which version made an answer."""
    return {"name": served.scorer.version.name, "version": served.scorer.version.version}


def _imputed(
    served: Served, request: EntityRequest, reasons: list[str | None], policy: MissingFeaturesPolicy
) -> dict[str, Any]:
    if policy != "impute":
        return {}
    rows = [(row, reason) for row, reason in enumerate(reasons) if reason is not None and reason.startswith(IMPUTED)]
    return {
        "imputed": [
            {**served.form.entity(request, row), "reason": reason.removeprefix(IMPUTED)} for row, reason in rows
        ]
    }
