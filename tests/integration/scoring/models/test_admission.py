"""What a model version must show before it serves, and what harms nobody when it can't."""

import ctypes
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import cloudpickle
import mlflow
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import skops.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import infer_signature
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
    VotingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.tree import DecisionTreeRegressor
from sklearn.tree._tree import Tree

from scoring.errors import ModelRefused, NoRoom, PredictionFailed
from scoring.models import trial_process
from scoring.models.admission import validate, verify_loaded
from scoring.models.flavors.sklearn import is_estimator
from scoring.models.model import Model, load_model
from scoring.models.model_files import ModelFiles, fetch_model, read_model_files
from scoring.models.outputs import same_bits
from scoring.models.registry import ModelVersion
from scoring.models.trial_load import RunTrial, validate_in_trial
from scoring.models.trial_process import PreforkedTrial, in_new_process
from scoring.settings import SKLEARN_TYPES
from tests.support import warm
from tests.support.ancestor import start_trial
from tests.support.fakes import files_of_at_most
from tests.support.forks import FORKS
from tests.support.model_folders import FolderRegistry, edit, loading_rules

RANDOM = np.random.default_rng(5)
FRAME = pd.DataFrame(RANDOM.normal(size=(200, 3)), columns=["c", "a", "b"])
TARGET = FRAME["a"] - 0.3 * FRAME["b"] + 0.01 * FRAME["c"]
VERSION = ModelVersion("m", 1)


def saved(folder: Path, model: Any, frame: pd.DataFrame = FRAME, **save: Any) -> Path:
    predict = getattr(model, save.get("pyfunc_predict_fn", "predict"))
    options = {
        "signature": infer_signature(frame, predict(frame)),
        "pip_requirements": ["scikit-learn"],
        "input_example": frame.head(5),
        "skops_trusted_types": list(SKLEARN_TYPES),
    }
    mlflow.sklearn.save_model(model, folder / "model", **options | save)
    return folder / "model"


def files_in(folder: Path, version: ModelVersion = VERSION, **own: Any) -> ModelFiles:
    return read_model_files(version, folder, loading_rules(**own))


def refusal(folder: Path, **own: Any) -> str:
    with pytest.raises(ModelRefused) as caught:
        validate(files_in(folder, **own))
    return str(caught.value)


def table(model: Model, frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, schema=model.signature.schema, preserve_index=False)


@pytest.mark.parametrize(
    "estimator",
    [
        ElasticNet(alpha=0.001),
        make_pipeline(StandardScaler(), ElasticNet(alpha=0.001)),
        RandomForestRegressor(5, random_state=0, n_jobs=2),
        HistGradientBoostingRegressor(max_iter=5),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_what_takes_arrays_gets_them_and_predicts_the_same(tmp_path: Path, estimator: Any) -> None:
    files = files_in(saved(tmp_path, estimator.fit(FRAME, TARGET)))
    model, proof = validate(files)
    assert (proof.source, proof.rows.num_rows) == ("input_example", 5)
    assert model.as_array
    assert proof.as_array
    assert proof.same_in_any_batch
    framed = load_model(files)
    rows = table(model, FRAME)
    assert same_bits(model.predict(rows), framed.predict(rows))


def test_a_model_that_depends_on_the_batch_for_other_rows_than_the_golden_is_not_merged(tmp_path: Path) -> None:
    def rounded_in_large_batches(frame: pd.DataFrame) -> pd.DataFrame:
        return frame.assign(a=frame["a"].where((frame["a"] == frame["b"]) | (len(frame) < 100), np.nextafter(1.0, 2.0)))

    frame = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]})
    estimator = make_pipeline(FunctionTransformer(rounded_in_large_batches), LinearRegression())
    options = {"serialization_format": "cloudpickle", "skops_trusted_types": None}
    folder = saved(tmp_path, estimator.fit(frame, frame["a"]), frame, **options)
    assert not validate(files_in(folder, model_formats=("cloudpickle",)))[1].same_in_any_batch


def test_what_picks_columns_by_name_keeps_its_frames(tmp_path: Path) -> None:
    columns = ColumnTransformer([("scaled", StandardScaler(), ["a", "c"])], remainder="passthrough")
    model, proof = validate(files_in(saved(tmp_path, make_pipeline(columns, ElasticNet()).fit(FRAME, TARGET))))
    assert not model.as_array
    assert not proof.as_array


def test_inputs_that_are_not_all_numbers_keep_their_frames(tmp_path: Path) -> None:
    frame = FRAME.assign(b=FRAME["b"] > 0)
    model, _ = validate(files_in(saved(tmp_path, ElasticNet().fit(frame, TARGET), frame)))
    assert not model.as_array


@pytest.fixture(scope="module")
def wide() -> tuple[Model, Model]:
    """A linear model of 20 inputs, as array and on frames."""
    import tempfile

    frame = pd.DataFrame(RANDOM.normal(size=(300, 20)), columns=[f"c{i}" for i in range(20)])
    estimator = ElasticNet(alpha=0.001).fit(frame, frame.sum(axis=1))
    with tempfile.TemporaryDirectory() as folder:
        files = files_in(saved(Path(folder), estimator, frame))
        return load_model(files, as_array=True), load_model(files)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 400), data=st.data())
def test_neither_the_batch_nor_the_way_changes_a_prediction(
    wide: tuple[Model, Model], seed: int, rows: int, data: st.DataObject
) -> None:
    fast, framed = wide
    frame = pd.DataFrame(np.random.default_rng(seed).normal(size=(rows, 20)), columns=list(fast.signature.names))
    vectors = table(fast, frame)
    together = fast.predict(vectors)
    assert same_bits(together, framed.predict(vectors))
    cuts = sorted(data.draw(st.sets(st.integers(0, rows), max_size=5)) | {0, rows})
    parts = [fast.predict(vectors.slice(start, end - start)) for start, end in itertools.pairwise(cuts)]
    assert same_bits(pa.concat_tables(parts), together)
    alone = data.draw(st.integers(0, rows - 1))
    assert same_bits(framed.predict(vectors.slice(alone, 1)), together.slice(alone, 1))


def test_a_model_that_gives_no_finite_number_is_refused(tmp_path: Path) -> None:
    estimator = ElasticNet().fit(FRAME, TARGET)
    folder = saved(tmp_path, estimator)
    estimator.coef_ = np.array([np.nan, 1, 1])
    skops.io.dump(estimator, folder / "model.skops")
    assert "no finite number for 5 of 5 golden rows (input_example)" in refusal(folder)


BY_NAME = ColumnTransformer([("scaled", StandardScaler(), ["a", "c"])], remainder="passthrough")


@pytest.mark.parametrize("with_example", [True, False])
@pytest.mark.parametrize(
    ("estimator", "columns", "problem"),
    [
        (ElasticNet(), ["a", "b"], "from the columns that it was fitted on (it lacks c). Infer the signature"),
        (ElasticNet(), ["c", "a", "b", "d"], "from the columns that it was fitted on (it adds d)"),
        (ElasticNet(), ["c", "b", "a"], "in another order than the columns that it was fitted on: input 2 is 'b', and"),
        (make_pipeline("passthrough", BY_NAME, ElasticNet()), ["a", "b", "c"], "in another order"),
    ],
    ids=["fewer", "more", "order", "pipeline"],
)
def test_a_signature_other_than_the_columns_that_a_model_was_fitted_on_is_refused(
    tmp_path: Path, estimator: Any, columns: list[str], problem: str, with_example: bool
) -> None:
    frame = FRAME.assign(d=1.0)[columns]
    wrong = {"signature": infer_signature(frame, TARGET), "input_example": frame.head(3) if with_example else None}
    assert problem in refusal(saved(tmp_path, estimator.fit(FRAME, TARGET), **wrong))


def test_a_model_that_was_fitted_on_arrays_is_served_if_the_number_of_inputs_is_right(tmp_path: Path) -> None:
    estimator = make_pipeline(StandardScaler(), ElasticNet(alpha=0.001)).fit(FRAME.to_numpy(), TARGET)
    whole, fewer = (10 * FRAME).astype("int64"), FRAME[["a", "b"]]
    wrong = {"signature": infer_signature(fewer, TARGET), "input_example": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of frames, and MLflow's, of integers
        floats, integers = saved(tmp_path / "floats", estimator), saved(tmp_path / "integers", estimator, whole)
        saved(tmp_path / "fewer", estimator, **wrong)
    assert validate(files_in(floats))[1].as_array
    framed, _ = validate(files_in(integers))
    assert not framed.as_array
    assert framed.predict(table(framed, whole))["prediction"].to_pylist() == pytest.approx(
        estimator.predict(whole.to_numpy()).tolist()
    )
    assert "has 2 inputs, but it was fitted on 3 columns" in refusal(tmp_path / "fewer" / "model")


@pytest.mark.parametrize("with_example", [True, False])
def test_an_integer_with_gaps_reaches_the_model_in_one_type(tmp_path: Path, with_example: bool) -> None:
    frame = pd.DataFrame({"x": [0, 7, 2, 5], "flag": [True, False, True, False]})
    # With integers, this imputer raises: its own value is a float.
    columns = ColumnTransformer([("x", SimpleImputer(strategy="constant", fill_value=7.5), ["x"])], remainder="drop")
    floats = frame.astype({"x": "float64"})
    estimator = make_pipeline(columns, LinearRegression()).fit(floats, floats["x"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, of integers
        signature = infer_signature(frame, floats["x"])
    own = {"signature": signature, "input_example": frame if with_example else None}
    files = files_in(
        saved(tmp_path, estimator, floats, **own),
        missing_features="impute",
        impute_values={"x": None, "flag": None},
    )
    model, _ = validate(files)
    vectors = pa.table([[3, None, 2**53 + 1], [True, None, True]], model.signature.schema)
    assert model.predict(vectors.slice(0, 2))["prediction"].to_pylist() == pytest.approx([3.0, 7.5])
    assert model.predict(vectors.slice(0, 1))["prediction"].to_pylist() == pytest.approx([3.0])
    with pytest.raises(PredictionFailed, match="ArrowInvalid on 1 rows"):
        model.predict(vectors.slice(2))


def test_rows_of_the_store_that_a_model_fails_on_are_no_golden_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"city": ["a", "b", "a", "b"]})
    estimator = make_pipeline(OneHotEncoder(), LinearRegression()).fit(frame, [1.0, 2.0, 1.0, 2.0])
    files = files_in(saved(tmp_path, estimator, frame, input_example=None))
    known = pa.table([["a", "new", "b"]], files.signature.schema)
    assert validate(files, known)[1].rows.column(0).to_pylist() == ["a", "b"]
    with pytest.raises(ModelRefused, match=r"it fails on its golden rows \(online_store\): ValueError on 1 rows"):
        validate(files, known.slice(1, 1))


def test_an_example_that_lacks_an_input_is_refused_without_quoting_it(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (folder / "input_example.json").write_text('{"columns": ["a"], "data": [[123.456]]}')
    text = refusal(folder)
    assert "its input example does not fit its signature" in text
    assert "123.456" not in text


def test_an_example_outside_of_the_model_is_not_read(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (folder / "input_example.json").rename(tmp_path / "other.json")
    edit(folder, lambda description: description["saved_input_example_info"].update(artifact_path="../other.json"))
    assert "does not fit its signature" in refusal(folder)


def test_incomplete_rows_of_an_example_are_no_golden_rows(tmp_path: Path) -> None:
    frame = FRAME.head(4).copy()
    frame.loc[1, "a"] = np.nan
    _, proof = validate(files_in(saved(tmp_path, ElasticNet().fit(FRAME, TARGET), input_example=frame)))
    assert proof.rows.num_rows == 3


@pytest.mark.parametrize("with_example", [True, False])
def test_one_column_of_the_probabilities_may_be_chosen(tmp_path: Path, with_example: bool) -> None:
    model = LogisticRegression().fit(FRAME, TARGET > 0)
    example = FRAME.head(2) if with_example else None
    folder = saved(tmp_path, model, pyfunc_predict_fn="predict_proba", input_example=example)
    tagged = ModelVersion("m", 1, {"serving.output_column": "0"})
    for place, files in enumerate((files_in(folder, tagged), files_in(folder, output_column=1))):
        chosen, proof = validate(files)
        predicted = load_model(files, proof.as_array, proof.outputs).predict(table(chosen, FRAME))
        expected = model.predict_proba(FRAME)[:, place]  # of rows in another block, whose last bit may differ
        assert predicted["prediction"].to_pylist() == pytest.approx(expected.tolist())
        assert same_bits(chosen.predict(table(chosen, FRAME)), predicted)
    with pytest.raises(ModelRefused, match=r"2 columns and column 2 .* serving\.output_column or SERVING"):
        validate(files_in(folder, output_column=2))


def test_functions_that_mlflow_does_not_call_may_predict(tmp_path: Path) -> None:
    quantiles = [
        (f"q{share}", HistGradientBoostingRegressor(loss="quantile", quantile=share / 100, max_iter=5))
        for share in (10, 50, 90)
    ]
    quantiles_of = VotingRegressor(quantiles).fit(FRAME, TARGET)
    returned = pd.DataFrame(quantiles_of.transform(FRAME), columns=["q10", "q50", "q90"])
    folder = saved(tmp_path, quantiles_of, signature=infer_signature(FRAME, returned))
    version = msgspec.structs.replace(VERSION, tags={"serving.outputs": "transform"})
    model, report = validate(files_in(folder, version))
    assert model.outputs.names == ("prediction_q10", "prediction_q50", "prediction_q90")
    assert report.same_in_any_batch
    assert np.array_equal(model.predict(table(model, FRAME)).to_pandas(), returned)


@pytest.mark.parametrize("with_example", [True, False])
def test_a_classifier_gives_its_label_and_the_probability_of_each_class(tmp_path: Path, with_example: bool) -> None:
    labels = np.where(TARGET > 1, "gold", np.where(TARGET > 0, "silver", "bronze"))
    model = RandomForestClassifier(7, random_state=0).fit(FRAME, labels)
    example = FRAME.head(5) if with_example else None
    folder = saved(tmp_path, model, skops_trusted_types=list(SKLEARN_TYPES), input_example=example)
    tags = {"serving.outputs": "predict, predict_proba", "serving.rank_by": "gold"}
    served, proof = validate(files_in(folder, ModelVersion("m", 1, tags)))
    names = ("prediction_label", *(f"prediction_{name}" for name in ("bronze", "gold", "silver")))
    assert (served.outputs.names, served.outputs.rank_by) == (names, 2)
    assert served.as_array == with_example
    predicted = served.predict(table(served, FRAME))
    assert predicted["prediction_label"].to_pylist() == model.predict(FRAME).tolist()
    assert np.array_equal(predicted.drop_columns(["prediction_label"]).to_pandas(), model.predict_proba(FRAME))
    assert proof.same_in_any_batch
    with pytest.raises(ModelRefused, match=r"serving\.rank_by is 'label', which is not .* \(bronze, gold, silver\)"):
        validate(files_in(folder, ModelVersion("m", 1, tags | {"serving.rank_by": "label"})))
    with pytest.raises(ModelRefused, match="no function 'predict_everything'"):
        validate(files_in(folder, ModelVersion("m", 1, {"serving.outputs": "predict_everything"})))


def test_without_an_example_rows_of_the_store_prove_it_and_without_those_only_its_form(tmp_path: Path) -> None:
    files = files_in(saved(tmp_path, ElasticNet().fit(FRAME, TARGET), input_example=None))
    known = pa.Table.from_pandas(FRAME.head(7), schema=files.signature.schema, preserve_index=False)
    assert validate(files, known)[1].source == "online_store"
    model, proof = validate(files)
    assert proof.source == "made_up"
    assert not model.as_array


def test_a_model_that_raises_on_made_up_rows_alone_is_admitted(tmp_path: Path) -> None:
    def only_known(frame: pd.DataFrame) -> pd.DataFrame:
        if (frame["a"] == 0).any():
            raise ValueError
        return frame

    estimator = make_pipeline(FunctionTransformer(only_known), ElasticNet()).fit(FRAME, TARGET)
    options = {"serialization_format": "cloudpickle", "skops_trusted_types": None, "input_example": None}
    _, proof = validate(files_in(saved(tmp_path, estimator, **options), model_formats=("cloudpickle",)))
    assert proof.predictions is None


def test_a_model_that_mlflow_would_score_otherwise_is_refused(tmp_path: Path) -> None:
    class Moody(ElasticNet):
        calls = 0

        def predict(self, inputs: Any) -> Any:
            self.calls += 1
            return super().predict(inputs) + self.calls

    options = {"serialization_format": "cloudpickle", "skops_trusted_types": None}
    folder = saved(tmp_path, Moody().fit(FRAME, TARGET), **options)
    assert "differ from those of MLflow's own pyfunc" in refusal(folder, model_formats=("cloudpickle",))


def test_mlflow_may_be_forbidden_to_trust_what_a_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    validate(files_in(saved(tmp_path, ElasticNet().fit(FRAME, TARGET))))
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_a_model_that_predicts_otherwise_where_it_serves_is_refused(tmp_path: Path) -> None:
    model, proof = validate(files_in(saved(tmp_path, ElasticNet().fit(FRAME, TARGET))))
    verify_loaded(model, proof)
    assert proof.predictions is not None
    other = msgspec.structs.replace(proof, predictions=proof.predictions.take(list(range(proof.rows.num_rows))[::-1]))
    with pytest.raises(ModelRefused, match="differ from those of its trial"):
        verify_loaded(model, other)


def test_files_larger_than_allowed_are_refused_before_they_are_fetched(tmp_path: Path) -> None:
    class Large(FolderRegistry):
        def size(self, model: ModelVersion) -> int:
            return 10**12

        def download(self, model: ModelVersion, destination: Path, file: str = "") -> Path:
            raise AssertionError

    with pytest.raises(ModelRefused, match="1000000000000 bytes, and SERVING_MAX_MODEL_BYTES allows 1073741824"):
        fetch_model(Large(tmp_path), VERSION, tmp_path, loading_rules())


def test_files_larger_than_the_registry_said_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (tmp_path / "copy").mkdir()
    with pytest.raises(ModelRefused, match="SERVING_MAX_MODEL_BYTES allows 1000"):
        fetch_model(FolderRegistry(folder), VERSION, tmp_path / "copy", loading_rules(max_model_bytes=1000))


def with_nodes(change: dict[str, int]) -> DecisionTreeRegressor:
    """A tree whose root was tampered with."""
    estimator = DecisionTreeRegressor(max_depth=3).fit(FRAME, TARGET)
    state = estimator.tree_.__getstate__()
    for field, value in change.items():
        state["nodes"][field][0] = value
    estimator.tree_ = Tree(3, np.array([1]), 1)
    estimator.tree_.__setstate__(state)
    return estimator


@pytest.mark.parametrize(
    "change",
    [{"left_child": 10**9}, {"right_child": -7}, {"left_child": 0}, {"feature": 10**9}, {"feature": -3}],
    ids=str,
)
def test_trees_that_lead_out_of_their_memory_or_round_in_a_circle_are_refused(
    tmp_path: Path, change: dict[str, int]
) -> None:
    folder = saved(tmp_path, DecisionTreeRegressor(max_depth=3).fit(FRAME, TARGET))
    skops.io.dump(with_nodes(change), folder / "model.skops")
    assert "a node of its trees" in refusal(folder)


class OnLoad:
    """An estimator that runs something of ours when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


Change = Callable[[PreforkedTrial], object]


def waiting_process(trial: PreforkedTrial) -> int:
    assert trial._waiting is not None
    return trial._waiting[0]


def forked_ahead(change: Change = waiting_process) -> RunTrial:
    """A trial forked from a process that has no threads, as this one may have; first, `change` is called there."""

    def run(model_folder: Path, folder: Path, within_s: float) -> int | None:
        ours, theirs = FORKS.Pipe()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        arguments = (warm.address(), limits, change, model_folder, folder, within_s)
        process = FORKS.Process(target=fork_and_run, args=(theirs, *arguments))
        process.start()
        theirs.close()
        status: int | None = ours.recv()
        process.join()
        return status

    return run


def fork_and_run(pipe: Connection, ancestor: str, limits: tuple[int, int], change: Change, *arguments: Any) -> None:
    warm.address = lambda: ancestor
    trial_process.start = start_trial  # for the changes that make the trial start from scratch
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    trial = PreforkedTrial()
    trial.fork()
    change(trial)
    pipe.send(trial.run(*arguments))


def in_warm_process(*arguments: Any) -> int | None:
    """A trial of `in_new_process` whose process has the libraries imported already."""
    with mock.patch.object(trial_process, "start", start_trial):
        return in_new_process(*arguments)


def kill(trial: PreforkedTrial) -> None:
    os.kill(waiting_process(trial), signal.SIGKILL)


def halt(trial: PreforkedTrial) -> None:
    os.kill(waiting_process(trial), signal.SIGSTOP)
    trial_process.BEGIN_TIMEOUT_S = 1.0


def use_up(trial: PreforkedTrial) -> None:
    trial._waiting = None


def leave_a_process_behind(told: str) -> None:
    if os.fork() == 0:
        time.sleep(600)
    Path(told).write_text(str(os.getpgrp()))
    os.abort()


@pytest.mark.parametrize("run", [in_warm_process, forked_ahead()], ids=["new", "forked"])
def test_what_a_trial_leaves_behind_neither_holds_it_up_nor_outlives_it(tmp_path: Path, run: RunTrial) -> None:
    options = {"serialization_format": "cloudpickle", "skops_trusted_types": None}
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET), **options)
    estimator = OnLoad(leave_a_process_behind, str(tmp_path / "group"))
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    try:
        (folder / "model.pkl").write_bytes(cloudpickle.dumps(estimator))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    own: dict[str, Any] = {"model_formats": ("cloudpickle",)}
    with pytest.raises(ModelRefused, match="SIGABRT"):
        validate_in_trial(files_in(folder, **own), None, run)
    group = int((tmp_path / "group").read_text())
    until = time.monotonic() + 10
    while is_there(group):
        assert time.monotonic() < until
        time.sleep(0.05)


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("run", [in_warm_process, forked_ahead()], ids=["new", "forked"])
@pytest.mark.parametrize(
    ("estimator", "own", "expected"),
    [
        (OnLoad(ctypes.string_at, 0), {}, r"crashed during its trial \(SIGSEGV\)"),
        (OnLoad(os._exit, 3), {}, "crashed during its trial"),
        (OnLoad(os._exit, 0), {}, "crashed during its trial"),
        (OnLoad(sys.exit, 0), {}, "crashed during its trial"),
        (OnLoad(time.sleep, 600), {"load_timeout_s": 1.0}, "did not load and predict within SERVING_LOAD_TIMEOUT_S=1"),
        (OnLoad(np.ones, 1 << 28), {"max_load_memory_bytes": 1 << 28}, "MemoryError"),
    ],
    ids=["crash", "exit", "exit as if well", "raise exit", "slow", "large"],
)
def test_what_crashes_hangs_or_grows_does_so_on_trial(
    tmp_path: Path, run: RunTrial, estimator: OnLoad, own: dict[str, Any], expected: str
) -> None:
    options = {"serialization_format": "cloudpickle", "skops_trusted_types": None}
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET), **options)
    (folder / "model.pkl").write_bytes(cloudpickle.dumps(estimator))
    own = {"model_formats": ("cloudpickle",), **own}
    began = time.monotonic()
    with pytest.raises(ModelRefused, match=expected):
        validate_in_trial(files_in(folder, **own), None, run)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("run", [in_new_process, forked_ahead()], ids=["new", "forked"])
def test_a_trial_that_finds_no_room_for_what_it_writes_says_nothing_of_the_version(
    tmp_path: Path, run: RunTrial
) -> None:
    def without_room(model_folder: Path, folder: Path, within_s: float) -> int | None:
        with files_of_at_most(100):
            return run(model_folder, folder, within_s)

    files = files_in(saved(tmp_path, ElasticNet().fit(FRAME, TARGET)))
    with pytest.raises(NoRoom, match=f"{tempfile.gettempdir()} failed: .*TMPDIR"):
        validate_in_trial(files, None, without_room)
    with pytest.raises(NoRoom), files_of_at_most(100):  # for the order already
        validate_in_trial(files, None, run)


@pytest.mark.parametrize(
    "run",
    [
        in_new_process,
        forked_ahead(),
        forked_ahead(kill),
        forked_ahead(halt),
        forked_ahead(use_up),
    ],
    ids=["new", "forked", "killed while it waited", "stopped while it waited", "forked and used up"],
)
def test_a_trial_proves_what_this_process_would(tmp_path: Path, run: RunTrial) -> None:
    folder = saved(tmp_path, make_pipeline(StandardScaler(), ElasticNet()).fit(FRAME, TARGET), input_example=None)
    files = files_in(folder)
    known = pa.Table.from_pandas(FRAME.head(7), schema=files.signature.schema, preserve_index=False)
    here, there = validate(files, known)[1], validate_in_trial(files, known, run)
    assert there.rows.equals(here.rows)
    assert there.predictions is not None
    assert here.predictions is not None
    assert same_bits(there.predictions, here.predictions)
    assert (there.source, there.as_array) == ("online_store", True)
    verify_loaded(load_model(files, there.as_array, there.outputs), there)


def test_skops_trusts_all_public_estimators_of_scikit_learn_and_no_other_of_its_types() -> None:
    from skops.io._trusted_types import SKLEARN_ESTIMATOR_TYPE_NAMES  # in this process, skops has listed them itself

    assert [each for each in SKLEARN_ESTIMATOR_TYPE_NAMES if not is_estimator(each)] == []
    others = ("sklearn.base.BaseEstimator", "sklearn.utils._bunch.Bunch", "sklearn.linear_model._base.LinearModel")
    others += ("sklearn.tests.test_base.MyEstimator", "sklearn.absent._module.Ridge", "os.system", "sklearn", "")
    assert [each for each in others if is_estimator(each)] == []
