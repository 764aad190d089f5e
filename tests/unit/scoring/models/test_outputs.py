"""What models return becomes named, typed columns, whatever its form."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from scoring.errors import ModelRefused, PredictionFailed
from scoring.models.output_description import choose, describe, read_declared
from scoring.models.outputs import ONE_NUMBER, OutputColumn, Outputs, same_bits, usable

PROBABILITIES = np.array([[0.1, 0.9], [0.4, 0.6]])
LABELS = ("bronze", "gold")


def described(returned: Any, function: str = "predict", classes: Any = None, declared: Any = ()) -> Outputs:
    return describe("m/1", [function], classes, declared, [returned], 2)


@pytest.mark.parametrize(
    "returned",
    [np.array([1.0, 2.0]), np.array([[1.0], [2.0]]), pd.DataFrame({"p": [1.0, 2.0]}), [1, 2], np.array([1, 2])],
)
def test_one_number_per_row_comes_in_several_forms_and_is_always_a_double(returned: Any) -> None:
    outputs = choose("m/1", described(returned), None, None)
    assert (outputs.names, outputs.rank_by) == (("prediction",), 0)
    table = outputs.table("m/1", [returned], 2, 2)
    assert table.schema == pa.schema([("prediction", pa.float64())])
    assert table["prediction"].to_pylist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("classes", "dtype"),
    [
        (("bronze", "gold"), pa.string()),
        ((1, 2**60), pa.int64()),
        ((False, True), pa.bool_()),
    ],
)
def test_a_label_is_served_as_it_is(classes: tuple[Any, ...], dtype: pa.DataType) -> None:
    for returned in (np.array(classes), np.array(classes, dtype=object)):
        outputs = described(returned, classes=classes)
        table = outputs.table("m/1", [returned], 2, 2)
        assert table.schema == pa.schema([("prediction", dtype)])
        assert table["prediction"].to_pylist() == list(classes)


def test_probabilities_are_named_after_the_classes_and_other_columns_after_the_frame_or_signature() -> None:
    outputs = described(PROBABILITIES, "predict_proba", LABELS)
    assert outputs.names == ("prediction_bronze", "prediction_gold")
    assert outputs.table("m/1", [PROBABILITIES], 1, 2).to_pylist() == [
        {"prediction_bronze": 0.1, "prediction_gold": 0.9}
    ]
    assert described(pd.DataFrame(PROBABILITIES, columns=["p10", "p90"])).names == ("prediction_p10", "prediction_p90")
    declared = read_declared([{"type": "double", "name": "x"}, {"type": "double", "name": "y"}])
    assert described(PROBABILITIES, declared=declared).names == ("prediction_x", "prediction_y")
    assert described(PROBABILITIES).names == ("prediction_0", "prediction_1")
    assert described({"a": PROBABILITIES[:, 0], "b": PROBABILITIES}).names == (
        "prediction_a",
        "prediction_b_0",
        "prediction_b_1",
    )


@pytest.mark.parametrize(
    ("classes", "names"), [((-1, 0, 1), ("p_-1", "p_0", "p_1")), (("", "b"), ("p_", "p_b")), ((0, 1), ("p_0", "p_1"))]
)
def test_columns_of_a_map_have_the_names_of_its_keys(classes: tuple[Any, ...], names: tuple[str, ...]) -> None:
    by_class = dict.fromkeys(classes, np.array([0.1, 0.4]))
    assert tuple(column.name for column in described({"p": by_class, "label": [1, 2]}).columns) == (*names, "label")
    assert tuple(column.name for column in described(by_class).columns) == tuple(map(str, classes))


def test_only_predict_returns_labels() -> None:
    outputs = describe("m/1", ["predict", "transform"], LABELS, (), [np.array(LABELS), np.array([[0.5], [1.5]])], 2)
    assert outputs.columns == (OutputColumn("label", "string"), OutputColumn("transform", "double"))


def test_label_and_probabilities_come_together() -> None:
    returned = [np.array(LABELS), PROBABILITIES]
    outputs = describe("m/1", ["predict", "predict_proba"], LABELS, (), returned, 2)
    assert outputs.names == ("prediction_label", "prediction_bronze", "prediction_gold")
    assert outputs == describe("m/1", ["predict", "predict_proba"], LABELS, (), None)
    assert outputs.table("m/1", returned, 2, 2).to_pylist()[0] == {
        "prediction_label": "bronze",
        "prediction_bronze": 0.1,
        "prediction_gold": 0.9,
    }
    with pytest.raises(ModelRefused, match="two of its outputs are named 'label': rename that output or class, or"):
        describe("m/1", ["predict", "predict_proba"], ("label", "gold"), (), returned, 2)


def test_the_outputs_are_known_without_a_prediction() -> None:
    tensor = [{"type": "tensor", "tensor-spec": {"dtype": "float64", "shape": [-1, 3]}}]
    assert describe("m/1", ["predict"], None, read_declared(tensor), None).names[2] == "prediction_2"
    assert describe("m/1", ["predict"], None, (), None) == Outputs((OutputColumn("predict", "double"),))


def test_entities_are_ranked_by_the_only_number_or_by_the_output_that_the_tag_names() -> None:
    three = Outputs((OutputColumn("label", "string"), OutputColumn("bad", "double"), OutputColumn("good", "double")))
    assert choose("m/1", three, None, None).rank_by is None
    assert choose("m/1", three, None, "good").rank_by == 2
    assert choose("m/1", three, None, "prediction_bad").rank_by == 1
    for name in ("label", "absent"):
        with pytest.raises(ModelRefused, match=rf"{name}.*numbers \(bad, good\)"):
            choose("m/1", three, None, name)


def test_one_column_of_several_may_be_chosen() -> None:
    outputs = choose("m/1", described(PROBABILITIES), 1, None)
    assert outputs.names == ("prediction",)
    assert outputs.table("m/1", [PROBABILITIES], 2, 2)["prediction"].to_pylist() == [0.9, 0.6]
    with pytest.raises(PredictionFailed, match="2 columns and column 2"):
        choose("m/1", described(PROBABILITIES), 2, None)
    unknown = choose("m/1", ONE_NUMBER, 1, None)  # the model could not predict when it was loaded
    assert unknown.table("m/1", [PROBABILITIES], 2, 2)["prediction"].to_pylist() == [0.9, 0.6]


@pytest.mark.parametrize(
    "returned", [np.array([1.0]), 1.0, np.zeros((2, 2, 2)), np.array([object(), object()]), np.array(["a", 1], object)]
)
def test_outputs_of_unsupported_shape_or_type_fail(returned: Any) -> None:
    with pytest.raises(PredictionFailed):
        described(returned)


@pytest.mark.parametrize("returned", [np.array(["a", "b"]), PROBABILITIES])
def test_an_output_of_another_form_than_described_fails(returned: Any) -> None:
    with pytest.raises(PredictionFailed, match="when it was loaded"):
        ONE_NUMBER.table("m/1", [returned], 2, 2)


def test_a_row_is_usable_if_every_output_has_a_value() -> None:
    table = pa.table({"a": [1.0, float("nan"), 2.0, float("inf")], "b": ["x", "y", None, "z"]})
    assert usable(table).tolist() == [True, False, False, False]
    assert usable(table.select(["b"])).tolist() == [True, True, False, True]


def test_bits_decide_whether_outputs_are_the_same() -> None:
    zero, minus = pa.table({"a": [0.0]}), pa.table({"a": [-0.0]})
    assert same_bits(zero, zero)
    assert not same_bits(zero, minus)
    assert not same_bits(pa.table({"a": ["x"]}), pa.table({"a": ["y"]}))
