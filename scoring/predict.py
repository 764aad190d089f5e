"""Turns feature vectors into scores according to the declared policy.

Batch calls this for all rows. Online, `OnlineScorer` (api/model/scorer.py) calls the model with complete rows directly
(docs/adr/013), and this for all others. Property tests verify that both ways give the same bits.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import FeaturesRejected, PredictionFailed
from scoring.foreign_errors import first_line
from scoring.models.failing_rows import RowFailures, places_of, predict_rows
from scoring.models.model import Model
from scoring.models.outputs import usable
from scoring.settings import MissingFeaturesPolicy, Settings

log = logging.getLogger(__name__)

NOT_FINITE = "not_finite"
MODEL_FAILED = "model_failed"
IMPUTED = "imputed_"


class Policy(msgspec.Struct, frozen=True):
    """The treatment of rows that can't be scored as they are."""

    kind: MissingFeaturesPolicy = "exclude"
    impute_values: dict[str, float | int | bool | str | None] = {}
    log_model_errors: bool = True
    """Whether the log gets the messages of a model's exceptions, which may quote feature values."""

    @classmethod
    def from_settings(cls, settings: Settings) -> "Policy":
        """Return the policy that the settings declare."""
        return cls(settings.missing_features, settings.impute_values, settings.log_model_errors)


class Scores(msgspec.Struct, frozen=True):
    """The scores of n rows, in their order."""

    outputs: pa.Table
    """The model's outputs (n_rows, n_outputs), all null if the row has no prediction. Never NaN or infinite."""
    reasons: pa.Array
    """string (n_rows,). `not_found`, `stale`, `null_feature`, `not_finite` or `model_failed` if there is no prediction;
    `imputed_not_found` and so on if the policy filled a gap; otherwise null."""
    failure: PredictionFailed | None = None
    """The error to raise if `failed_on_all`; None unless a row has the reason `model_failed`."""

    @property
    def predicted(self) -> int:
        """Return the number of rows with a prediction."""
        return int(self.outputs.num_rows - self.outputs.column(0).null_count)


def score(
    model: Model,
    vectors: pa.Table,
    reasons: pa.Array,
    policy: Policy,
    name_row: Callable[[int], str],
    search_s: float = math.inf,
) -> Scores:
    """Predict for every row that the policy admits.

    A row on which the model raises gets the reason `model_failed`, even if it is the only row: see `failed_on_all`.

    Args:
        model: the loaded version.
        vectors: feature vectors (n_rows, n_inputs), in the model's signature order and types; null = unknown.
        reasons: string (n_rows,), why a row is incomplete; null if it is complete (`missing_reasons`).
        policy: what to do with rows that are incomplete or that the model fails on.
        name_row: returns a name of row i for messages: its key, or its number in a file.
        search_s: time limit, in seconds, of the search for rows on which the model raises.

    Raises:
        FeaturesRejected: the policy is `reject` and a row is incomplete.
        PredictionFailed: the policy is `reject` and the model raised, or `predict_rows` raises it.
    """
    if reasons.null_count == len(reasons):
        return _scored(model, vectors, reasons, policy, name_row, search_s)
    if policy.kind == "reject":
        offending = np.flatnonzero(pc.is_valid(reasons).to_numpy(zero_copy_only=False))
        listed = [(name_row(int(i)), reasons[int(i)].as_py()) for i in offending[: FeaturesRejected.max_listed]]
        raise FeaturesRejected(listed, len(offending))
    if policy.kind == "impute":
        vectors, reasons = _impute(vectors, reasons, policy)
    admitted = pc.or_(pc.is_null(reasons), pc.fill_null(pc.starts_with(reasons, IMPUTED), False))

    def name_admitted(row: int) -> str:
        return name_row(int(np.flatnonzero(admitted.to_numpy(zero_copy_only=False))[row]))

    scored = _scored(model, vectors.filter(admitted), reasons.filter(admitted), policy, name_admitted, search_s)
    places = places_of(admitted.to_numpy(zero_copy_only=False))
    return Scores(
        scored.outputs.take(places), pc.if_else(admitted, scored.reasons.take(places), reasons), scored.failure
    )


def failed_on_all(predicted: int, reasons: Mapping[Any, int]) -> bool:
    """Return whether a model failed on all of its rows, in which case the request or run fails.

    Args:
        predicted: number of rows with a prediction.
        reasons: reason → number of rows.
    """
    return bool(reasons.get(MODEL_FAILED)) and not predicted and not reasons.get(NOT_FINITE)


def _scored(
    model: Model,
    vectors: pa.Table,
    reasons: pa.Array,
    policy: Policy,
    name_row: Callable[[int], str],
    search_s: float,
) -> Scores:
    outputs, failures = predict_rows(model, vectors, first_only=policy.kind == "reject", search_s=search_s)
    failure = None
    if failures is not None:
        row = name_row(failures.first)
        if policy.kind == "reject":
            problem = f"{failures.together.problem}; of these, {row} is the first{_because_of(failures)}"
            raise PredictionFailed(failures.together.model, problem) from failures.error
        failure = _log_failures(failures, row, policy)
        reasons = pc.if_else(pa.array(failures.rows), MODEL_FAILED, reasons)
    return scores_of(outputs, reasons, None if failures is None else failures.rows, failure)


def scores_of(
    outputs: pa.Table, reasons: pa.Array, failed: np.ndarray | None = None, failure: PredictionFailed | None = None
) -> Scores:
    """Return the scores from a model's outputs: a row with a number that is not finite has none.

    Args:
        outputs: as of `Model.predict`.
        reasons: string (n_rows,), as in `Scores`.
        failed: bool (n_rows,), the rows on which the model raised; None if there are none.
        failure: as in `Scores`.
    """
    good = usable(outputs)
    if good.all():
        return Scores(outputs, reasons)
    not_finite = ~good if failed is None else ~good & ~failed
    columns = [pc.if_else(pa.array(good), column, None) for column in outputs.columns]
    outputs = pa.Table.from_arrays(columns, schema=outputs.schema)
    return Scores(outputs, pc.if_else(pa.array(not_finite), NOT_FINITE, reasons), failure)


def _log_failures(failures: RowFailures, row: str, policy: Policy) -> PredictionFailed:
    """Log the model's exception. Return the error to raise if it failed on every row."""
    error, because_of = failures.error, _because_of(failures)
    kind = type(error.__cause__).__name__
    # The message may quote feature values, and the row may be named by its keys.
    detail = f", first on {row}{because_of}: {kind}: {first_line(str(error.__cause__), 500)}"
    if not policy.log_model_errors:
        detail = f"{because_of}: {kind} (SERVING_LOG_MODEL_ERRORS=false omits its message)"
    failed, rows = np.count_nonzero(failures.rows), len(failures.rows)
    log.warning("Model version %s failed on %d of %d rows%s", error.model, failed, rows, detail)
    failure = PredictionFailed(error.model, f"{kind} on every row{because_of}; see the log")
    failure.__cause__ = error.__cause__
    return failure


def _because_of(failures: RowFailures) -> str:
    return "" if failures.column is None else f", because of input {failures.column!r}"


def _impute(vectors: pa.Table, reasons: pa.Array, policy: Policy) -> tuple[pa.Table, pa.Array]:
    incomplete = pa.array(np.zeros(len(reasons), dtype=bool))
    columns = []
    for field, original in zip(vectors.schema, vectors.columns, strict=True):
        column = original
        if field.name not in policy.impute_values:
            incomplete = pc.or_(incomplete, pc.is_null(column))
        elif (value := policy.impute_values[field.name]) is not None:
            column = pc.fill_null(column, pa.scalar(value, field.type))
        columns.append(column)
    filled = pc.if_else(incomplete, reasons, pc.binary_join_element_wise(IMPUTED, reasons, ""))
    filled = filled.combine_chunks() if isinstance(filled, pa.ChunkedArray) else filled
    return pa.Table.from_arrays(columns, schema=vectors.schema), filled
