"""ONNX models: the same bits as ONNX Runtime and MLflow; what a file may name and what not."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import BooleanTensorType, DoubleTensorType, FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from scoring.models.failing_rows import predict_rows
from scoring.models.flavors.flavor import ROWS_PER_BLOCK
from tests.integration.scoring.models.libraries import (
    CLASS,
    EXAMPLE,
    NUMBER,
    assert_same,
    damaged,
    predicted,
    refusal,
    save,
    served,
)
from tests.integration.scoring.models.libraries import FRAME as GAPS

FRAME = GAPS.fillna(0.0)
WIDTH = FRAME.shape[1]
LABEL = np.array(["low", "mid", "high"])[CLASS]
FLOATS = FRAME.to_numpy(np.float32)


def converted(estimator: Any, **own: Any) -> onnx.ModelProto:
    options = {"initial_types": [("X", FloatTensorType([None, WIDTH]))]}
    return to_onnx(estimator, **options | own)


def run(model: onnx.ModelProto, feeds: Any = FLOATS) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # several add the trees' results in another order
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds if isinstance(feeds, dict) else {"X": feeds})


def saved(folder: Path, model: onnx.ModelProto, frame: pd.DataFrame = EXAMPLE, **own: Any) -> Path:
    return save(partial(mlflow.onnx.save_model, model), folder, np.ones(len(frame)), frame, **own)


@pytest.mark.parametrize(
    ("estimator", "target", "rows_per_block"),
    [
        (RandomForestRegressor(20, max_depth=5, random_state=0), NUMBER, 1),
        (make_pipeline(StandardScaler(), Ridge()), NUMBER, ROWS_PER_BLOCK),
        (Ridge(), np.column_stack([NUMBER, -NUMBER]), ROWS_PER_BLOCK),
    ],
    ids=["forest", "linear", "two targets"],
)
def test_a_regressor_predicts_the_same_bits_in_any_batch(
    tmp_path: Path, estimator: Any, target: np.ndarray, rows_per_block: int
) -> None:
    model = converted(estimator.fit(FRAME.to_numpy(), target))
    loaded, report = served(saved(tmp_path, model))
    assert (report.as_array, report.same_in_any_batch) == (True, True)
    assert loaded.rows_per_block == rows_per_block
    assert_same(loaded, run(model)[0], FRAME)


def test_a_classifier_returns_label_and_probabilities(tmp_path: Path) -> None:
    classifier = RandomForestClassifier(10, max_depth=5, random_state=0).fit(FRAME.to_numpy(), LABEL)
    model = converted(classifier, options={id(classifier): {"zipmap": False}})
    loaded, report = served(saved(tmp_path, model))
    assert report.same_in_any_batch
    assert loaded.outputs.names == ("prediction_label", *(f"prediction_probabilities_{place}" for place in range(3)))
    label, probabilities = run(model)
    assert_same(loaded, np.hstack([label.reshape(-1, 1), probabilities]), FRAME)


def test_zipmap_names_the_probabilities_after_the_classes(tmp_path: Path) -> None:
    model = converted(LogisticRegression().fit(FRAME.to_numpy(), LABEL))
    folder = saved(tmp_path, model)
    loaded, _ = served(folder, {"serving.outputs": "output_probability"})
    assert set(loaded.outputs.names) == {"prediction_high", "prediction_low", "prediction_mid"}
    names = [name.removeprefix("prediction_") for name in loaded.outputs.names]
    assert_same(loaded, np.array([[row[name] for name in names] for row in run(model)[1]]), FRAME)
    label, _ = served(folder, {"serving.outputs": "output_label"})
    assert_same(label, run(model)[0], FRAME)


@pytest.mark.parametrize("element", [TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL])
def test_a_row_with_a_value_that_the_graph_does_not_take_fails(tmp_path: Path, element: int) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)]
    ends = [helper.make_tensor_value_info("x", element, [None, 2])]
    out = [helper.make_tensor_value_info("y", TensorProto.DOUBLE, [None, 2])]
    graph = helper.make_graph(nodes, "g", ends, out)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    frame = pd.DataFrame({"a": [0.0, 1.0, 1.0], "b": [1.0, 0.0, 1.0]})
    loaded, _ = served(saved(tmp_path, model, frame))
    rows = pa.table({"a": [1.0, None, 0.5, 2.0**40], "b": [0.0, 1.0, 1.0, 1.0]})
    outputs, failures = predict_rows(loaded, rows)
    assert outputs["prediction_0"].to_pylist()[:3] == [1.0, None, None]
    assert failures is not None
    assert failures.rows.tolist() == [False, True, True, element != TensorProto.INT64]


def test_one_input_for_each_column(tmp_path: Path) -> None:
    frame = FRAME[["c", "gap"]].assign(tier=np.array(["gold", "silver"])[FRAME["n"] % 2], member=FRAME["c"] > 0)
    columns = ColumnTransformer(
        [("numbers", StandardScaler(), ["c", "gap"]), ("codes", OneHotEncoder(), ["tier"])], remainder="drop"
    )
    fitted = make_pipeline(columns, Ridge()).fit(frame, NUMBER)
    column = [None, 1]
    types = [DoubleTensorType(column)] * 2 + [StringTensorType(column), BooleanTensorType(column)]
    model = converted(fitted, initial_types=list(zip(frame.columns, types, strict=True)))
    loaded, report = served(saved(tmp_path, model, frame.head(20)))
    assert (report.as_array, report.same_in_any_batch) == (False, True)
    feeds = {str(name): frame[name].to_numpy().reshape(-1, 1) for name in frame.columns}
    kept = {each.name for each in model.graph.input}
    assert_same(loaded, run(model, {name: feeds[name] for name in kept})[0], frame)


def test_an_output_that_it_lacks_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path, converted(Ridge().fit(FRAME.to_numpy(), NUMBER)))
    with pytest.raises(
        Exception, match=r"its tag serving.outputs names the output 'predict_proba', but it has variable"
    ):
        served(folder, {"serving.outputs": "predict_proba"})


def test_the_number_of_inputs_is_checked_when_it_is_loaded(tmp_path: Path) -> None:
    model = to_onnx(Ridge().fit(FLOATS[:, :2], NUMBER), initial_types=[("X", FloatTensorType([None, 2]))])
    assert "its signature has 4 inputs, but it was fitted on 2 columns" in refusal(saved(tmp_path, model))


def test_nulls_are_nan(tmp_path: Path) -> None:
    model = converted(RandomForestRegressor(5, random_state=0).fit(GAPS.to_numpy(np.float32), NUMBER))
    loaded, _ = served(saved(tmp_path, model), missing_features="impute", impute_values={"gap": None})
    gaps = FRAME.assign(gap=np.nan)
    assert np.array_equal(predicted(loaded, gaps), run(model, gaps.to_numpy(np.float32))[0][:, 0])


def test_without_the_library_the_refusal_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, converted(Ridge().fit(FRAME.to_numpy(), NUMBER)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install --require-hashes -r requirements/onnx.txt" in refusal(folder)


@pytest.mark.parametrize("damage", ["empty", "half", "end", "noise"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path, converted(Ridge().fit(FRAME.to_numpy(), NUMBER)))
    damaged(folder / "model.onnx", damage)
    assert "its file model.onnx is damaged, or not a model of ONNX" in refusal(folder)


def crafted(folder: Path, nodes: list[Any], initializers: list[Any] = [], domain: str = "") -> Path:  # noqa: B006
    """Save a graph from X (rows, WIDTH) to Y (rows, 1), without letting MLflow check it."""
    graph = helper.make_graph(
        nodes,
        "crafted",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, WIDTH])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None, 1])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 18)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    saved(folder, converted(Ridge().fit(FRAME.to_numpy(), NUMBER)))
    content = helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    (folder / "model" / "model.onnx").write_bytes(content)
    return folder / "model"


def external(location: str) -> Any:
    weights = TensorProto(name="W", data_type=TensorProto.FLOAT, dims=[WIDTH, 1], data_location=TensorProto.EXTERNAL)
    weights.external_data.add(key="location", value=location)
    return weights


@pytest.mark.parametrize("location", ["../weights", "/etc/passwd", "link", "gone"])
def test_data_in_other_files_must_be_in_the_models_folder(tmp_path: Path, location: str) -> None:
    folder = crafted(tmp_path, [helper.make_node("MatMul", ["X", "W"], ["Y"])], [external(location)])
    (tmp_path / "weights").write_bytes(np.ones(WIDTH, np.float32).tobytes())
    (folder / "link").symlink_to(tmp_path / "weights")
    assert "its file model.onnx is damaged, or not a model of ONNX" in refusal(folder)


def test_data_in_other_files_of_the_folder_is_read(tmp_path: Path) -> None:
    folder = crafted(tmp_path, [helper.make_node("MatMul", ["X", "W"], ["Y"])], [external("weights")])
    (folder / "weights").write_bytes(np.float32(FRAME.columns == "n").tobytes())
    model, _ = served(folder)
    assert_same(model, FRAME["n"].to_numpy(), FRAME)


@pytest.mark.parametrize(
    ("nodes", "domain", "problem"),
    [
        ([helper.make_node("Evil", ["X"], ["Y"], domain="com.evil")], "com.evil", "is not a registered function/op"),
        (
            [helper.make_node("RandomUniformLike", ["X"], ["Z"]), helper.make_node("ReduceMax", ["Z", "A"], ["Y"])],
            "",
            "differ from those of MLflow's own pyfunc",
        ),
        (
            [
                helper.make_node("ConstantOfShape", ["S"], ["Z"]),
                helper.make_node("ReduceMax", ["Z"], ["M"]),
                helper.make_node("ReduceMax", ["X", "A"], ["N"]),
                helper.make_node("Add", ["N", "M"], ["Y"]),
            ],
            "",
            "it fails on its golden rows",
        ),
    ],
    ids=["unknown operator", "random", "a terabyte"],
)
def test_what_a_graph_must_not_do(tmp_path: Path, nodes: list[Any], domain: str, problem: str) -> None:
    constants = [
        onnx.numpy_helper.from_array(np.array([1]), "A"),
        onnx.numpy_helper.from_array(np.array([1 << 38]), "S"),
    ]
    assert problem in refusal(crafted(tmp_path, nodes, constants, domain))
