"""The arrays of complete rows, and the outputs for them, are those of the general way to the bit."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.arrow.signature import ModelInput, Signature
from scoring.features.model_features import Feature, ModelFeatures
from scoring.models.model import Model
from scoring.models.outputs import OutputColumn, Outputs, usable
from scoring.models.registry import ModelVersion
from scoring.online.number_inputs import CONVERTED, NumberInputs, number_inputs
from scoring.online.reading import Numbers, StoreRead, joined

EVENT_S = {"view": np.ones(2)}
PAIRS = [(source, target) for source, targets in CONVERTED.items() for target in targets]
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.int32(): st.integers(-(2**31), 2**31 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300),
}


def model_of(features: ModelFeatures) -> Model:
    """Return a model that returns what it is called with."""
    outputs = Outputs((OutputColumn("predict", "double"),))
    return Model(ModelVersion("m", 1), features.signature, outputs, (lambda array: array,), as_array=True)


def features_of(pairs: Sequence[tuple[pa.DataType, pa.DataType]]) -> ModelFeatures:
    return ModelFeatures(
        service="service",
        join_keys=(),
        # The features in another order than the inputs.
        features=tuple(
            Feature(f"input{place}", f"view:feature{place}", source, ("view",))
            for place, (source, _) in reversed(list(enumerate(pairs)))
        ),
        views=(),
        request_inputs=(),
        signature=Signature(tuple(ModelInput(f"input{place}", target) for place, (_, target) in enumerate(pairs))),
    )


def numbers_of(features: ModelFeatures, columns: dict[str, list[Any]]) -> tuple[Numbers, ...]:
    alike: dict[pa.DataType, list[str]] = {}
    for each in features.features:
        alike.setdefault(each.dtype, []).append(each.column)
    return tuple(
        Numbers(tuple(names), dtype, np.array([columns[name] for name in names], dtype.to_pandas_dtype()))
        for dtype, names in alike.items()
    )


def made(features: ModelFeatures) -> NumberInputs:
    inputs = number_inputs(features, model_of(features))
    assert inputs is not None
    return inputs


@given(pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=6), rows=st.integers(1, 20), data=st.data())
def test_the_array_of_complete_rows_is_that_of_their_vectors(pairs, rows, data):
    features = features_of([*pairs, (pa.float32(), pa.float32())])  # an array of integers alone has no value for null
    columns = {
        each.column: data.draw(st.lists(VALUES[each.dtype], min_size=rows, max_size=rows)) for each in features.features
    }
    read = StoreRead({"view": np.ones(rows)}, {}, numbers_of(features, columns))
    array = made(features).array(read)
    vectors = features.vectors(read.columns, {})
    if array is None:
        extreme = [each for column in columns.values() for each in column if not -(2**53) < each < 2**53]
        assert extreme, "the rows are complete"
        return
    assert not any(column.null_count for column in vectors.columns)
    [expected] = model_of(features).call(vectors)
    assert (array.dtype, array.shape, array.flags.f_contiguous) == (expected.dtype, expected.shape, True)
    assert array.tobytes() == expected.tobytes()


def test_what_is_not_in_numbers_is_left_to_the_general_way():
    features = features_of([(pa.float64(), pa.float64())] * 2)
    numbers = numbers_of(features, {each.column: [1.5, 2.5] for each in features.features})
    assert made(features).array(StoreRead(EVENT_S, {}, numbers)) is not None
    gap = {"view:feature1": pa.array([1.5, None])}
    part = (Numbers(("view:feature0",), pa.float64(), np.ones((1, 2))),)
    assert made(features).array(StoreRead(EVENT_S, gap, part)) is None
    assert made(features).array(StoreRead(EVENT_S, {}, part)) is None
    assert made(features).array(StoreRead(EVENT_S, gap | {"view:feature0": pa.array([1.5, 2.5])})) is None


@pytest.mark.parametrize(
    ("source", "target"),
    [(pa.string(), pa.string()), (pa.int64(), pa.int32()), (pa.int32(), pa.float32()), (pa.bool_(), pa.float64())],
    ids=str,
)
def test_other_conversions_are_left_to_the_general_way(source, target):
    features = features_of([(source, target), (pa.float64(), pa.float64())])
    assert number_inputs(features, model_of(features)) is None


def test_a_request_input_is_left_to_the_general_way():
    features = features_of([(pa.float64(), pa.float64())])
    with_request = ModelFeatures(
        service="service",
        join_keys=(),
        features=features.features,
        views=(),
        request_inputs=("price",),
        signature=Signature((*features.signature.inputs, ModelInput("price", pa.float64()))),
    )
    assert number_inputs(with_request, model_of(with_request)) is None


@given(
    gaps=st.lists(
        st.lists(st.sampled_from(["view:feature0", "view:feature1", "view:feature2"])), min_size=1, max_size=4
    ),
    data=st.data(),
)
def test_parts_are_joined_whichever_features_they_know(gaps, data):
    features = features_of([(pa.float64(), pa.float64()), (pa.float64(), pa.float64()), (pa.int64(), pa.float64())])
    names, parts = [each.column for each in features.features], []
    for gap in gaps:
        rows = data.draw(st.integers(1, 3))
        columns = {name: data.draw(st.lists(st.integers(-9, 9), min_size=rows, max_size=rows)) for name in names}
        numbers = tuple(each for each in numbers_of(features, columns) if not set(gap) & set(each.names))
        known = {name for each in numbers for name in each.names}
        types = {each.column: each.dtype for each in features.features}
        others = {name: pa.array(columns[name], types[name]) for name in names if name not in known}
        parts.append(StoreRead({"view": np.ones(rows)}, others, numbers))
    whole = joined(parts)
    assert whole.columns == {name: pa.concat_arrays([part.columns[name] for part in parts]) for name in names}
    assert whole.rows == sum(part.rows for part in parts)
    array = made(features).array(whole)
    assert (array is None) == any(gaps)
    if array is not None:
        [expected] = model_of(features).call(features.vectors(whole.columns, {}))
        assert array.tobytes() == expected.tobytes()


@pytest.mark.parametrize("columns", [1, 3])
@given(values=st.lists(st.floats(width=32), min_size=48, max_size=48), rows=st.integers(1, 16), chosen=st.booleans())
def test_the_outputs_are_those_of_the_table(columns, values, rows, chosen):
    returned = np.array(values, np.float32).reshape(16, 3)[:, :columns]
    only = columns > 1 and chosen
    names = [OutputColumn(f"{place}", "double") for place in range(1 if only else columns)]
    outputs = Outputs(tuple(names), chosen=1 if only else None)
    of_function = [returned[:, 0] if columns == 1 else returned]
    found = outputs.numbers(of_function, rows, 16)
    table = outputs.table("m/1", of_function, rows, 16)
    if found is None:
        assert only or not usable(table).all()
    else:
        assert repr(found) == repr([column.to_pylist() for column in table.columns]), "-0.0, too"


@pytest.mark.parametrize("returned", [np.arange(16), np.ones(3), np.ones((16, 2)), [1.0] * 16, np.array(["a"] * 16)])
def test_other_outputs_are_left_to_the_table(returned):
    assert Outputs((OutputColumn("predict", "double"),)).numbers([returned], 3, 16) is None
