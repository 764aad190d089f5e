"""Rows are scored table by table, and a run fails only if the model fails on every row of all tables."""

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

from scoring.batch import scored_rows
from scoring.batch.manifest import ScoringSummary
from scoring.batch.scored_rows import TableScorer
from scoring.errors import FeaturesRejected, PredictionFailed
from scoring.files.transfer import Content
from scoring.models.model import Model
from scoring.models.outputs import ONE_NUMBER
from scoring.models.registry import ModelVersion
from scoring.predict import Policy
from scoring.spark.engine import _check_reasons
from scoring.spark.tasks import Written
from tests.support.fakes import features

LINK = features(request_inputs={"a": pa.float64()})
CONTENT = Content("batch_input.parquet", 0, "")


def predict(inputs: np.ndarray) -> np.ndarray:
    if (inputs < 0).any():
        raise ValueError
    return inputs[:, 0]


def summary_of(*tables: list[float | None], policy: Policy) -> ScoringSummary:
    model = Model(ModelVersion("m", 1), LINK.signature, ONE_NUMBER, (predict,), as_array=True)
    scoring = TableScorer(model, LINK, policy)
    for each in scoring.scored(pa.table({"a": pa.array(values, pa.float64())}) for values in tables):
        assert each["reason"].null_count + each["prediction"].null_count == each.num_rows
    return scoring.summary(CONTENT)


def test_a_table_of_which_every_row_fails_does_not_fail_the_run() -> None:
    summary = summary_of([-1.0, -1.0], [2.0], [-2.0, None], policy=Policy())
    assert (summary.rows, summary.scored) == (5, 1)
    assert summary.reasons == {"model_failed": 3, "null_feature": 1}
    assert {"scikit-learn", "xgboost-cpu", "lightgbm", "catboost", "onnxruntime"} <= summary.software.keys()


def test_a_run_fails_if_every_row_fails_and_under_reject_for_the_first_one() -> None:
    with pytest.raises(PredictionFailed, match="ValueError on every row, because of input 'a'"):
        summary_of([-1.0], [None, -2.0], policy=Policy())
    with pytest.raises(PredictionFailed, match="ValueError on 3 rows; of these, row 4 is the first"):
        summary_of([1.0, 2.0], [3.0, -1.0, -1.0], policy=Policy("reject"))


def test_tables_that_are_scored_at_the_same_time_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored_rows.os, "cpu_count", lambda: 3)
    working, most, read = 0, 0, 0

    def slowly(inputs: np.ndarray) -> np.ndarray:
        nonlocal working, most
        working += 1
        most = max(most, working)
        time.sleep(0.02 if inputs[0, 0] % 2 else 0.001)
        working -= 1
        return inputs[:, 0]

    def tables() -> Iterator[pa.Table]:
        nonlocal read
        for number in range(20):
            read += 1
            yield pa.table({"a": [float(number)]})

    model = Model(ModelVersion("m", 1), LINK.signature, ONE_NUMBER, (slowly,), as_array=True)
    done = 0
    for each in TableScorer(model, LINK, Policy()).scored(tables()):
        assert each["prediction"].to_pylist() == [float(done)]
        done += 1
        assert read <= done + 3
    assert done == 20
    assert most > 1


@pytest.mark.parametrize(
    ("kind", "reasons", "scored", "error"),
    [
        ("exclude", {"model_failed": 2, "null_feature": 1}, 7, None),
        ("exclude", {"model_failed": 2, "not_finite": 1}, 0, None),
        (
            "exclude",
            {"model_failed": 2, "null_feature": 1},
            0,
            r"^Model version m/1 failed .* on 2 of 10 rows; .* row 4",
        ),
        (
            "reject",
            {"model_failed": 2},
            8,
            r"^Model version m/1 failed to predict: it failed on 2 of 10 rows; .* row 4 ",
        ),
        (
            "reject",
            {"model_failed": 2, "null_feature": 1},
            7,
            r"^1 entity row lacks usable .*\(row 2: null_feature\)\.$",
        ),
        ("reject", {"not_finite": 1}, 9, None),
    ],
)
def test_the_spark_driver_raises_what_the_local_engine_does(
    kind: str, reasons: dict[str, int], scored: int, error: str | None
) -> None:
    written = [Written(0, CONTENT, 1), Written(1, CONTENT, 9, scored, reasons, ((1, "null_feature"),), 3)]
    if "model_failed" not in reasons:
        written = [Written(0, CONTENT, 10, scored, reasons)]
    summary = ScoringSummary(CONTENT, "exclude", {}, 10, scored, reasons, {})
    version = ModelVersion("m", 1)
    if error is None:
        _check_reasons(version, Policy(kind), summary, written)  # type: ignore[arg-type]
        return
    with pytest.raises((PredictionFailed, FeaturesRejected), match=error):
        _check_reasons(version, Policy(kind), summary, written)  # type: ignore[arg-type]
