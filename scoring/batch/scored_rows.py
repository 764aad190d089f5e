"""The columns that scoring adds to those of a batch input, table by table, and their counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from scoring.batch.manifest import ScoringSummary, software_versions
from scoring.errors import PredictionFailed
from scoring.features.model_features import ModelFeatures, reasons_from_nulls
from scoring.files.encodings import constant
from scoring.files.transfer import Content
from scoring.models.model import Model
from scoring.models.registry import ModelVersion
from scoring.predict import Policy, Scores, score

# Columns of a batch output that hold one string throughout; see `scoring.files.encodings.constant`.
CONSTANTS = ("model_name", "feature_service")


class Scoring:
    """Scores tables of a batch input's columns one after the other, and counts the results."""

    def __init__(self, model: Model, features: ModelFeatures, policy: Policy) -> None:
        """Score nothing yet."""
        self._model = model
        self._features = features
        self._policy = policy
        self._rows = 0
        self._scored = 0
        self._reasons: Counter[str] = Counter()

    def scored(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """The same rows with the columns that scoring adds.

        Raises:
            FeaturesRejected, PredictionFailed: as `scoring.predict.score`.
        """
        for rows in tables:
            vectors = self._features.written_vectors(rows)
            scores = self._scores(vectors, reasons_from_nulls(self._features, vectors))
            self._rows += rows.num_rows
            self._scored += rows.num_rows - scores.predictions.null_count
            self._reasons += count_reasons(scores)
            yield with_scores(rows, scores, self._model.version, self._features.service)

    def summary(self, batch_input: Content) -> ScoringSummary:
        """The counts so far."""
        return summarize(batch_input, self._policy, self._rows, self._scored, self._reasons)

    def _scores(self, vectors: pa.Table, reasons: pa.Array) -> Scores:
        try:
            return score(self._model, vectors, reasons, self._policy, self._name_row)
        except PredictionFailed as error:
            if error.transient:
                raise
            if not self._fails(vectors, reasons):
                problem = f"{error.problem}, but not when they were tried again"
                raise PredictionFailed(error.model, problem, transient=True) from error
            start, rows = 0, vectors.num_rows
            while rows > 1:  # halve, as long as one half fails alone
                half = rows // 2
                if self._fails(vectors.slice(start, half), reasons.slice(start, half)):
                    rows = half
                else:
                    start, rows = start + half, rows - half
            if not self._fails(vectors.slice(start, 1), reasons.slice(start, 1)):
                raise
            problem = f"{error.problem}; of these, {self._name_row(start)} is the first"
            raise PredictionFailed(error.model, problem) from error

    def _fails(self, vectors: pa.Table, reasons: pa.Array) -> bool:
        try:
            score(self._model, vectors, reasons, self._policy, self._name_row)
        except PredictionFailed:
            return True
        return False

    def _name_row(self, row: int) -> str:
        return f"row {self._rows + row + 1}"


def count_reasons(scores: Scores) -> Counter[str]:
    """Reason → number of rows."""
    counts = pc.value_counts(scores.reasons.drop_null()).to_pylist()
    return Counter({each["values"]: each["counts"] for each in counts})


def summarize(
    batch_input: Content, policy: Policy, rows: int, scored: int, reasons: Mapping[str, int]
) -> ScoringSummary:
    """What a manifest says of a scored batch input."""
    return ScoringSummary(
        batch_input=batch_input,
        missing_features=policy.kind,
        impute_values=dict(sorted(policy.impute_values.items())),
        rows=rows,
        scored=scored,
        reasons=dict(sorted(reasons.items())),
        software=dict(software_versions()),
    )


def with_scores(rows: pa.Table, scores: Scores, version: ModelVersion, service: str) -> pa.Table:
    """A table of a batch input's columns with those that scoring adds, CONSTANTS among them."""
    name, named = constant(version.name, rows.num_rows), constant(service, rows.num_rows)
    added = [
        (pa.field("prediction", pa.float64()), scores.predictions),
        (pa.field("reason", pa.string()), scores.reasons),
        (pa.field("model_name", name.type, nullable=False), name),
        (pa.field("model_version", pa.int64(), nullable=False), pa.repeat(version.version, rows.num_rows)),
        (pa.field("feature_service", named.type, nullable=False), named),
    ]
    for field, column in added:
        rows = rows.append_column(field, column)
    return rows
