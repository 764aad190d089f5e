"""One call scores batch and online; what is incomplete is never scored in silence."""

import functools
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import FeaturesRejected, PredictionFailed
from scoring.features.model_features import missing_reasons
from scoring.models.flavors.estimators import is_forest, unchecked
from scoring.models.model import Model
from scoring.models.outputs import ONE_NUMBER
from scoring.models.registry import ModelVersion
from scoring.predict import Policy, Scores, failed_on_all, score

SIGNATURE = Signature((ModelInput("a", pa.float64()), ModelInput("n", pa.int64())))
VALUE = st.floats(-1e6, 1e6) | st.none()
ROWS = st.lists(st.tuples(VALUE, st.integers(-1000, 1000) | st.none()), max_size=30)


class WeightedSum:
    """A stand-in for an estimator: it refuses what a linear model refuses."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        """The distinct values of `a` in each call; a row may be repeated to fill a block."""

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        assert list(frame.columns) == ["a", "n"]
        assert frame["n"].dtype == np.int64
        assert not frame.isna().to_numpy().any()
        self.seen.append(frame["a"].unique().tolist())
        return (2 * frame["a"] + frame["n"]).to_numpy()


def model_of(predict_fn: object) -> Model:
    return Model(ModelVersion("m", 1), SIGNATURE, ONE_NUMBER, (predict_fn,))  # type: ignore[arg-type]


def vectors_of(rows: list[tuple[float | None, int | None]]) -> pa.Table:
    return pa.table(
        [pa.array([r[0] for r in rows], pa.float64()), pa.array([r[1] for r in rows], pa.int64())],
        SIGNATURE.schema,
    )


def scored(rows: list[tuple[float | None, int | None]], policy: Policy | None = None) -> Scores:
    vectors = vectors_of(rows)
    reasons = missing_reasons(vectors, {}, {})
    return score(model_of(WeightedSum().predict), vectors, reasons, policy or Policy(), lambda i: f"row {i + 1}")


@given(ROWS)
def test_every_row_gets_a_prediction_or_a_reason_and_never_both(
    rows: list[tuple[float | None, int | None]],
) -> None:
    result = scored(rows)
    assert result.outputs.num_rows == len(result.reasons) == len(rows)
    for (a, n), prediction, reason in zip(
        rows, result.outputs["prediction"].to_pylist(), result.reasons.to_pylist(), strict=True
    ):
        if a is None or n is None:
            assert (prediction, reason) == (None, "null_feature")
        else:
            assert (prediction, reason) == (2 * a + n, None)


@given(ROWS, st.randoms())
def test_row_order_never_changes_a_prediction(rows: list[tuple[float | None, int | None]], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    straight, shuffled = (
        scored(rows).outputs["prediction"].to_pylist(),
        scored([rows[i] for i in order]).outputs["prediction"].to_pylist(),
    )
    assert shuffled == [straight[i] for i in order]


@given(ROWS, st.integers(1, 7))
def test_chunk_size_never_changes_a_prediction(rows: list[tuple[float | None, int | None]], size: int) -> None:
    parts = [
        scored(rows[start : start + size]).outputs["prediction"].to_pylist() for start in range(0, len(rows), size)
    ]
    assert [value for part in parts for value in part] == scored(rows).outputs["prediction"].to_pylist()


def test_the_model_sees_only_complete_rows_and_is_not_called_for_none() -> None:
    estimator = WeightedSum()
    vectors = vectors_of([(None, 1), (2.0, 3), (1.0, None)])
    score(model_of(estimator.predict), vectors, missing_reasons(vectors, {}, {}), Policy(), str)
    nothing = vectors_of([(None, None)])
    score(model_of(estimator.predict), nothing, missing_reasons(nothing, {}, {}), Policy(), str)
    assert estimator.seen == [[2.0]]


def test_reject_names_the_rows_and_their_reasons() -> None:
    with pytest.raises(FeaturesRejected, match=r"^2 entity rows lack usable features, .* \(row 1: null_feature; row 3"):
        scored([(None, 1), (1.0, 1), (1.0, None)], Policy("reject"))


def test_impute_fills_what_was_declared_and_says_so() -> None:
    result = scored([(None, 1), (1.0, None), (1.0, 1)], Policy("impute", {"a": 0.5}))
    assert result.outputs["prediction"].to_pylist() == [2.0, None, 3.0]
    assert result.reasons.to_pylist() == ["imputed_null_feature", "null_feature", None]


def test_impute_with_null_leaves_the_gap_to_the_model() -> None:
    seen: list[pd.DataFrame] = []

    def predict(frame: pd.DataFrame) -> np.ndarray:
        seen.append(frame)
        return frame["a"].fillna(7).to_numpy()

    vectors = vectors_of([(None, 1)])
    result = score(model_of(predict), vectors, missing_reasons(vectors, {}, {}), Policy("impute", {"a": None}), str)
    assert result.outputs["prediction"].to_pylist() == [7.0]
    assert np.isnan(seen[0]["a"][0])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_prediction_that_is_no_number_is_null_with_a_reason(bad: float) -> None:
    vectors = vectors_of([(1.0, 1), (2.0, 2)])
    result = score(
        model_of(lambda frame: np.where(frame["n"] == 1, bad, 1.0)),
        vectors,
        missing_reasons(vectors, {}, {}),
        Policy(),
        str,
    )
    assert result.outputs["prediction"].to_pylist() == [None, 1.0]
    assert result.reasons.to_pylist() == ["not_finite", None]


def test_not_found_goes_before_stale_and_that_before_null() -> None:
    vectors = vectors_of([(None, 1), (None, 1), (None, 1), (1.0, 1)])
    absent = {"v": pa.array([True, False, False, False])}
    stale = {"v": pa.array([True, True, False, False])}
    assert missing_reasons(vectors, absent, stale).to_pylist() == ["not_found", "stale", "null_feature", None]


def refuse_negative(frame: pd.DataFrame) -> np.ndarray:
    if (frame["a"] < 0).any():
        raise ValueError(f"can't take {frame['a'].min()}\nand a second line")
    return frame["a"].fillna(5.0).to_numpy()


def scored_by(predict: Any, rows: list[tuple[float | None, int | None]], policy: Policy) -> Scores:
    vectors = vectors_of(rows)
    return score(model_of(predict), vectors, missing_reasons(vectors, {}, {}), policy, lambda row: f"row {row + 1}")


@pytest.mark.parametrize("show", [True, False])
def test_a_row_that_the_model_fails_on_has_a_reason_and_the_log_says_why(
    show: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy("impute", {"a": None}, log_model_errors=show)
    rows: list[tuple[float | None, int | None]] = [(1.0, None), (1.0, 1), (-123.5, 1), (None, 1), (np.nan, 1)]
    result = scored_by(refuse_negative, rows, policy)
    assert result.outputs["prediction"].to_pylist() == [None, 1.0, None, 5.0, 5.0]
    reasons = ["null_feature", None, "model_failed", "imputed_null_feature"]
    assert result.reasons.to_pylist()[:4] == reasons
    assert result.failure is not None
    (line,) = caplog.messages
    assert line == "Model version m/1 failed on 1 of 4 rows" + (
        ", first on row 3, because of input 'a': ValueError: can't take -123.5"
        if show
        else ", because of input 'a': ValueError (SERVING_LOG_MODEL_ERRORS=false omits its message)"
    )


def test_an_output_may_be_not_finite_beside_a_failure() -> None:
    def predict(frame: pd.DataFrame) -> np.ndarray:
        return np.where(frame["n"] == 7, np.inf, refuse_negative(frame))

    result = scored_by(predict, [(1.0, 7), (-1.0, 1), (2.0, 1)], Policy())
    assert result.outputs["prediction"].to_pylist() == [None, None, 2.0]
    assert result.reasons.to_pylist() == ["not_finite", "model_failed", None]


def test_under_reject_a_failure_names_the_first_row_but_no_values() -> None:
    with pytest.raises(PredictionFailed) as caught:
        scored_by(refuse_negative, [(1.0, 1), (-123.5, 1), (-1.0, 1)], Policy("reject"))
    assert str(caught.value) == (
        "Model version m/1 failed to predict: ValueError on 3 rows; of these, row 2 is the first, because of input 'a'"
    )


@pytest.mark.parametrize(
    ("rows", "failed"), [([(-1.0, 1), (-2.0, 1)], True), ([(-1.0, 1), (None, 1)], True), ([(-1.0, 1), (1.0, 1)], False)]
)
def test_a_request_fails_where_the_model_fails_on_every_row_that_it_gets(
    rows: list[tuple[float | None, int | None]], failed: bool
) -> None:
    result = scored_by(refuse_negative, rows, Policy())
    assert failed_on_all(result.predicted, Counter(result.reasons.to_pylist())) is failed
    assert str(result.failure).startswith("Model version m/1 failed to predict: ValueError on every row")
    assert "-1.0" not in str(result.failure)


LINEAR = ("ElasticNet", "Ridge", "BayesianRidge", "LinearRegression", "HuberRegressor", "LassoLarsCV")


@pytest.mark.parametrize("name", LINEAR)
@given(rows=st.lists(st.tuples(st.floats(-1e300, 1e300), st.integers(-1000, 1000)), min_size=1, max_size=40))
def test_a_linear_model_without_its_checks_predicts_the_same_bits(name: str, rows: list[tuple[float, int]]) -> None:
    estimator = fitted(name)
    assert_the_same_bits(estimator, ("predict",), np.asfortranarray(np.array(rows, np.float64)))


FORESTS = {
    "RandomForestClassifier": ("predict", "predict_proba"),
    "ExtraTreesClassifier": ("predict_proba",),
    "RandomForestRegressor": ("predict",),
    "ExtraTreesRegressor": ("predict",),
}


@pytest.mark.parametrize("name", FORESTS)
@settings(max_examples=30)
@given(rows=st.lists(st.tuples(st.floats(-1e30, 1e30), st.integers(-1000, 1000)), min_size=1, max_size=40))
def test_a_forest_without_its_checks_predicts_the_same_bits(name: str, rows: list[tuple[float, int]]) -> None:
    assert is_forest(fitted(name))
    assert_the_same_bits(fitted(name), FORESTS[name], np.asfortranarray(np.array(rows, np.float64)))


def test_a_forest_refuses_a_number_beyond_float32_as_it_does_with_its_checks() -> None:
    predict = unchecked(fitted("RandomForestRegressor"), ("predict",))
    assert predict is not None
    with pytest.raises(ValueError, match="too large for dtype"):
        predict(np.array([[1e300, 1.0]]))


@pytest.mark.parametrize("name", ["PoissonRegressor", "LogisticRegression", "RANSACRegressor", "SGDClassifier"])
def test_only_sums_of_products_and_forests_go_without_their_checks(name: str) -> None:
    assert unchecked(fitted(name), ("predict",)) is None


def test_several_outputs_and_somebodys_own_kind_of_linear_model_keep_their_checks() -> None:
    from sklearn.ensemble import RandomForestRegressor as Forest
    from sklearn.linear_model import ElasticNet, LinearRegression

    class Doubled(ElasticNet):
        def predict(self, inputs: np.ndarray) -> np.ndarray:
            return 2 * super().predict(inputs)

    inputs, _ = learned()
    for estimator in (Doubled().fit(*learned()), *(each().fit(inputs, inputs) for each in (LinearRegression, Forest))):
        assert unchecked(estimator, ("predict",)) is None


def test_a_linear_model_refuses_an_unknown_value_as_it_does_with_its_checks() -> None:
    estimator = fitted("ElasticNet")
    fast = unchecked(estimator, ("predict",))
    model = Model(ModelVersion("m", 1), SIGNATURE, ONE_NUMBER, (estimator.predict,), True, fast)
    assert model.predict(vectors_of([(0.5, 1)])).num_rows == 1
    with pytest.raises(PredictionFailed, match="ValueError"):
        model.predict(vectors_of([(0.5, 1), (None, 2)]))


def assert_the_same_bits(estimator: Any, functions: tuple[str, ...], inputs: np.ndarray) -> None:
    fast = unchecked(estimator, functions)
    assert fast is not None
    for name, returned in zip(functions, fast(inputs), strict=True):
        assert returned.tobytes() == getattr(estimator, name)(inputs).tobytes()


def learned() -> tuple[np.ndarray, np.ndarray]:
    inputs = np.random.default_rng(7).normal(size=(80, 2))
    return inputs, (inputs @ [1.0, -2.0] > 0).astype(float)


@functools.cache
def fitted(name: str) -> Any:
    import sklearn.ensemble
    import sklearn.linear_model

    module = sklearn.ensemble if name in FORESTS else sklearn.linear_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(module, name)(**{"n_estimators": 7} if name in FORESTS else {}).fit(*learned())
