"""Rows on which a model raises are found in bounded work, and cost the other rows nothing."""

import math
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import PredictionFailed
from scoring.models import failing_rows
from scoring.models.failing_rows import predict_rows
from scoring.models.flavors.flavor import ROWS_PER_BLOCK
from scoring.models.model import Model
from scoring.models.outputs import ONE_NUMBER
from scoring.models.registry import ModelVersion

SIGNATURE = Signature(tuple(ModelInput(name, pa.float64()) for name in ("a", "b", "c")))


class Raising:
    """A model that returns `a`, and raises for rows with a negative `b`."""

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, frame: pd.DataFrame) -> Any:
        self.calls += 1
        if (frame["b"] < 0).any():
            raise ValueError(f"b is {frame['b'].min()}")
        return frame["a"]


def model_of(predict: Any) -> Model:
    return Model(ModelVersion("m", 1), SIGNATURE, ONE_NUMBER, (predict,))


def vectors_of(b: list[float], a: list[float] | None = None) -> pa.Table:
    a = a or [float(row) for row in range(len(b))]
    return pa.table([a, b, [0.0] * len(b)], SIGNATURE.schema)


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_exactly_the_failing_rows_have_no_prediction(bad: list[bool]) -> None:
    estimator = Raising()
    values, failures = predict_rows(model_of(estimator.predict), vectors_of([-1.0 if each else 1.0 for each in bad]))
    assert values["prediction"].to_pylist() == [None if each else float(row) for row, each in enumerate(bad)]
    assert (failures is not None) == any(bad)
    if failures is not None:
        assert failures.rows.tolist() == bad
        assert failures.first == bad.index(True)
        assert failures.column == (None if all(bad) else "b")
        assert str(failures.error.__cause__) == "b is -1.0"
    assert estimator.calls <= 2 * len(bad) + 5


def test_one_bad_row_of_many_takes_few_calls_and_equal_rows_are_asked_once() -> None:
    estimator = Raising()
    predict_rows(model_of(estimator.predict), vectors_of([*[1.0] * 5000, -1.0, *[1.0] * 5000]))
    assert estimator.calls < 40
    estimator = Raising()
    values, _ = predict_rows(model_of(estimator.predict), vectors_of([1.0, -1.0] * 5000, [2.0] * 10_000))
    assert values["prediction"].null_count == 5000
    assert estimator.calls < 10


def test_predictions_that_depend_on_the_batch_are_those_of_the_good_rows_together() -> None:
    estimator = Raising()

    def centered(frame: pd.DataFrame) -> Any:
        return estimator.predict(frame) - frame["a"].mean()

    model = model_of(centered)
    good = [float(row) for row in range(ROWS_PER_BLOCK)]
    values, _ = predict_rows(model, vectors_of([*[1.0] * ROWS_PER_BLOCK, -1.0], [*good, 99.0]))
    assert values.slice(0, ROWS_PER_BLOCK).equals(model.predict(vectors_of([1.0] * ROWS_PER_BLOCK, good)))


def test_the_column_is_named_only_where_its_value_alone_makes_the_row_fail() -> None:
    def predict(frame: pd.DataFrame) -> Any:
        if ((frame["a"] < 0) | (frame["c"] < 0)).any():
            raise ValueError
        return frame["b"]

    vectors = pa.table([[1.0, -1.0, 1.0], [1.0] * 3, [1.0, -1.0, -1.0]], SIGNATURE.schema)
    _, both = predict_rows(model_of(predict), vectors)
    assert both is not None
    assert (both.rows.tolist(), both.column) == ([False, True, True], None)
    _, one = predict_rows(model_of(predict), vectors.take([0, 2]))
    assert one is not None
    assert one.column == "c"


@pytest.mark.parametrize("limit", ["calls", "time"])
def test_the_search_is_bounded(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failing_rows, "MAX_CALLS", 9 if limit == "calls" else 10**6)
    estimator = Raising()
    with pytest.raises(PredictionFailed, match=r"ValueError on 800 rows\. The search .* was stopped after \d+ further"):
        predict_rows(
            model_of(estimator.predict), vectors_of([-1.0] * 800), search_s=math.inf if limit == "calls" else 0.01
        )
    assert estimator.calls == 10 or limit == "time"


@pytest.mark.parametrize(
    ("fails_at", "transient", "problem"),
    [(1, True, "but not on a second attempt"), (None, False, "but not on any of them alone")],
)
def test_a_failure_that_no_row_has_alone_is_not_blamed_on_rows(
    fails_at: int | None, transient: bool, problem: str
) -> None:
    calls = []

    def predict(frame: pd.DataFrame) -> Any:
        calls.append(1)
        if len(calls) == fails_at or (fails_at is None and frame["a"].nunique() > 3):
            raise RuntimeError
        return frame["a"]

    with pytest.raises(PredictionFailed, match=problem) as caught:
        predict_rows(model_of(predict), vectors_of([1.0] * 8))
    assert caught.value.transient is transient


@pytest.mark.parametrize("output", [MemoryError, "text", [1.0, 2.0]])
def test_what_is_not_the_fault_of_a_row_is_not_searched(output: Any) -> None:
    calls = []

    def predict(frame: pd.DataFrame) -> Any:
        calls.append(1)
        if output is MemoryError:
            raise output
        return output

    with pytest.raises(PredictionFailed):
        predict_rows(model_of(predict), vectors_of([1.0] * 8))
    assert len(calls) == 1
