"""From feature vectors to scores, under the declared policy for missing features. The same call in batch and online."""

from collections.abc import Callable

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scoring.errors import FeaturesRejected
from scoring.models.model import Model
from scoring.settings import MissingFeaturesPolicy, Settings

NOT_FINITE = "not_finite"
IMPUTED = "imputed_"


class Policy(msgspec.Struct, frozen=True):
    """What happens to an entity row whose feature vector is incomplete."""

    kind: MissingFeaturesPolicy = "exclude"
    impute_values: dict[str, float | int | bool | str | None] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> "Policy":
        """The policy that the settings declare."""
        return cls(settings.missing_features, settings.impute_values)


class Scores(msgspec.Struct, frozen=True):
    """What n entity rows got, in their order."""

    predictions: pa.Array
    """float64 (n_rows,); null where the row was not scored. Never NaN nor infinite."""
    reasons: pa.Array
    """string (n_rows,). `not_found`, `stale`, `null_feature` or `not_finite` where there is no prediction;
    `imputed_not_found` and so on where the policy filled the gap; else null."""


def score(model: Model, vectors: pa.Table, reasons: pa.Array, policy: Policy, name_row: Callable[[int], str]) -> Scores:
    """Predict for every entity row that the policy admits.

    Args:
        model: the loaded version.
        vectors: feature vectors (n_rows, n_inputs), in the model's signature order and types; null = unknown.
        reasons: string (n_rows,), why a row is incomplete, null where it is complete (`features.missing_reasons`).
        policy: what to do with incomplete rows.
        name_row: what names row i to a person (its key, or its place in a file); used by the policy `reject`.

    Raises:
        FeaturesRejected: the policy is `reject` and a row is incomplete.
        PredictionFailed: the model failed on complete vectors.
    """
    if reasons.null_count == len(reasons):
        return _scored(model, vectors, reasons)
    if policy.kind == "reject":
        offending = np.flatnonzero(pc.is_valid(reasons).to_numpy(zero_copy_only=False))
        shown = [(name_row(int(i)), reasons[int(i)].as_py()) for i in offending[: FeaturesRejected.max_listed]]
        raise FeaturesRejected(shown, len(offending))
    if policy.kind == "impute":
        vectors, reasons = _impute(vectors, reasons, policy)
    admitted = pc.or_(pc.is_null(reasons), pc.fill_null(pc.starts_with(reasons, IMPUTED), False))
    scored = _scored(model, vectors.filter(admitted), reasons.filter(admitted))
    places = pc.if_else(admitted, pc.subtract(pc.cumulative_sum(pc.cast(admitted, pa.int64())), 1), None)
    return Scores(
        predictions=scored.predictions.take(places),
        reasons=pc.if_else(admitted, scored.reasons.take(places), reasons),
    )


def _scored(model: Model, vectors: pa.Table, reasons: pa.Array) -> Scores:
    values = model.predict(vectors)
    finite = np.isfinite(values)
    if finite.all():
        return Scores(pa.array(values), reasons)
    return Scores(pa.array(values, mask=~finite), pc.if_else(pa.array(finite), reasons, NOT_FINITE))


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
