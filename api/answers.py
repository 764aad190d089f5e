"""Scores as the answers to POST /inference and POST /scores. Pure: no request, no header."""

from typing import Any

import numpy as np

from api.errors import NothingScored
from api.model_slot import Served
from api.request_form import EntityRequest
from scoring.predict import IMPUTED, Scores
from scoring.settings import MissingFeaturesPolicy


def inference_answer(
    served: Served, request: EntityRequest, scores: Scores, policy: MissingFeaturesPolicy
) -> dict[str, Any]:
    """The entity with the highest prediction; of equals, the one that the request names first.

    Raises:
        NothingScored: no entity has a prediction.
    """
    reasons = scores.reasons.to_pylist()
    values = _values(scores)
    excluded = [
        {**served.form.entity(request, row), "reason": reasons[row]}
        for row in np.flatnonzero(np.isnan(values)).tolist()
    ]
    if len(excluded) == request.rows:
        raise NothingScored(excluded)
    best = int(np.nanargmax(values))
    return {
        "request_id": request.request_id,
        "prediction": served.form.choice(request, best),
        "score": float(values[best]),
        "model": model_answer(served),
        "excluded": excluded,
        **_imputed(served, request, reasons, policy),
        "error": None,
    }


def scores_answer(
    served: Served, request: EntityRequest, scores: Scores, policy: MissingFeaturesPolicy
) -> dict[str, Any]:
    """One score an entity, in request order: null, with a reason, where there is none."""
    reasons = scores.reasons.to_pylist()
    return {
        "request_id": request.request_id,
        "model": model_answer(served),
        "scores": [
            {
                **served.form.entity(request, row),
                "score": value,
                "reason": reasons[row] if value is None else None,
            }
            for row, value in enumerate(scores.predictions.to_pylist())
        ],
        **_imputed(served, request, reasons, policy),
    }


def model_answer(served: Served) -> dict[str, Any]:
    """Which version made an answer."""
    return {"name": served.scorer.version.name, "version": served.scorer.version.version}


def _values(scores: Scores) -> np.ndarray:
    """Predictions, float64 (n_rows,), NaN for none."""
    return scores.predictions.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


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
