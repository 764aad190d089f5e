"""Scores the tables of a batch input and counts the results."""

import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from scoring.batch.manifest import ScoringSummary, software_versions
from scoring.errors import PredictionFailed
from scoring.features.model_features import ModelFeatures, reasons_from_nulls
from scoring.files.encodings import constant
from scoring.files.transfer import Content
from scoring.models.model import Model
from scoring.models.outputs import ONE_NUMBER, Outputs
from scoring.models.registry import ModelVersion
from scoring.predict import Policy, Scores, failed_on_all, score

# Columns with the same string in every row; see `scoring.files.encodings.constant`.
CONSTANTS = ("model_name", "feature_service")


# Each thread holds a table of at most ROWS_PER_BATCH rows.
MAX_THREADS = 4


class TableScorer:
    """Scores the tables of a batch input, some of them at the same time, and counts the results in their order."""

    def __init__(self, model: Model, features: ModelFeatures, policy: Policy) -> None:
        """Store the arguments; `scored` scores the rows."""
        self._model = model
        self._features = features
        self._policy = policy
        self._rows = 0
        self._rows_scored = 0
        self._reasons: Counter[str] = Counter()
        self._failure: PredictionFailed | None = None

    def scored(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the same rows with the columns that scoring adds.

        Raises:
            FeaturesRejected: as `scoring.predict.score`.
            PredictionFailed: as `scoring.predict.score`; or, at the end, the model failed on all rows of all tables.
        """
        threads = min(os.cpu_count() or 1, MAX_THREADS)
        ahead: deque[tuple[pa.Table, Future[Scores]]] = deque()
        row = 0
        with ThreadPoolExecutor(threads, "scoring") as pool:
            for rows in tables:
                ahead.append((rows, pool.submit(self._score, rows, row)))
                row += rows.num_rows
                if len(ahead) > threads:
                    yield self._counted(*ahead.popleft())
            while ahead:
                yield self._counted(*ahead.popleft())
        if self._failure is not None and failed_on_all(self._rows_scored, self._reasons):
            raise self._failure

    def _score(self, rows: pa.Table, first: int) -> Scores:
        """Score a table whose first row has this number, counted from 0."""
        vectors = self._features.written_vectors(rows)
        reasons = reasons_from_nulls(self._features, vectors)
        return score(self._model, vectors, reasons, self._policy, lambda row: f"row {first + row + 1}")

    def _counted(self, rows: pa.Table, scoring: Future[Scores]) -> pa.Table:
        scores = scoring.result()
        self._rows += rows.num_rows
        self._rows_scored += scores.predicted
        self._reasons += count_reasons(scores)
        self._failure = self._failure or scores.failure
        return with_scores(rows, scores, self._model.version, self._features.service)

    def summary(self, batch_input: Content) -> ScoringSummary:
        """Return the counts so far."""
        return summarize(batch_input, self._model.outputs, self._policy, self._rows, self._rows_scored, self._reasons)


def count_reasons(scores: Scores) -> Counter[str]:
    """Return reason → number of rows."""
    counts = pc.value_counts(scores.reasons.drop_null()).to_pylist()
    return Counter({each["values"]: each["counts"] for each in counts})


def summarize(
    batch_input: Content, outputs: Outputs, policy: Policy, rows: int, scored: int, reasons: Mapping[str, int]
) -> ScoringSummary:
    """Return the part of a manifest that describes how a batch input was scored."""
    types = {name: column.type for name, column in zip(outputs.names, outputs.columns, strict=True)}
    return ScoringSummary(
        batch_input=batch_input,
        missing_features=policy.kind,
        impute_values=dict(sorted(policy.impute_values.items())),
        rows=rows,
        scored=scored,
        reasons=dict(sorted(reasons.items())),
        software=dict(software_versions()),
        outputs={} if outputs.schema == ONE_NUMBER.schema else types,
    )


def with_scores(rows: pa.Table, scores: Scores, version: ModelVersion, service: str) -> pa.Table:
    """Return a table of a batch input's columns with the model's outputs and the other OUTPUT_COLUMNS added."""
    names, services = constant(version.name, rows.num_rows), constant(service, rows.num_rows)
    added = [
        *zip(scores.outputs.schema, scores.outputs.columns, strict=True),
        (pa.field("reason", pa.string()), scores.reasons),
        (pa.field("model_name", names.type, nullable=False), names),
        (pa.field("model_version", pa.int64(), nullable=False), pa.repeat(version.version, rows.num_rows)),
        (pa.field("feature_service", services.type, nullable=False), services),
    ]
    for field, column in added:
        rows = rows.append_column(field, column)
    return rows
