"""Feature vectors of many inputs are those of each input alone."""

import numpy as np
import pyarrow as pa
import pytest

from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import UnusableFeature
from scoring.features.model_features import MANY, Feature, ModelFeatures

VALUES: dict[pa.DataType, list[pa.Array]] = {
    pa.float32(): [pa.array([0.1, 2.5], pa.float32()), pa.array([1, np.inf], pa.float32())],
    pa.int64(): [pa.array([1, 2]), pa.array([2**53 + 1, 2]), pa.array([None, 3], pa.int64())],
    pa.int32(): [pa.array([7, 2**40]), pa.array([5, 6], pa.int32())],
    pa.float64(): [pa.array([np.nan, 1.0]), pa.array([0.5, -0.0])],
}


def features_of(types: list[pa.DataType], target: pa.DataType) -> ModelFeatures:
    names = [f"input{number}" for number in range(len(types))]
    return ModelFeatures(
        service="wide",
        join_keys=(),
        features=tuple(
            Feature(name, f"view{number % 3}:{name}", dtype, (f"view{number % 3}",))
            for number, (name, dtype) in enumerate(zip(names, types, strict=True))
        ),
        views=(),
        request_inputs=(),
        signature=Signature(tuple(ModelInput(name, target) for name in names)),
    )


def vectors(features: ModelFeatures, columns: list[pa.Array], unusable: dict[str, pa.Array]) -> list[list[float]]:
    given = {each.column: column for each, column in zip(features.features, columns, strict=True)}
    table = features.vectors(given, unusable)
    assert table.schema == features.signature.schema
    return [column.to_pylist() for column in table.columns]


@pytest.mark.parametrize("unusable", [{}, {"view1": pa.array([True, False])}], ids=["usable", "absent"])
def test_vectors_of_many_inputs_are_those_of_each_alone(unusable):
    kinds = [(dtype, column) for dtype, every in VALUES.items() for column in every if dtype != pa.int32()] * 4
    kinds += [(pa.int32(), VALUES[pa.int32()][1])] * 4
    assert len(kinds) > MANY
    features = features_of([dtype for dtype, _ in kinds], pa.float64())
    columns = [column for _, column in kinds]

    together = vectors(features, columns, unusable)

    for place, (dtype, column) in enumerate(kinds):
        alone = features_of([dtype], pa.float64())
        given = {"view0": unusable[f"view{place % 3}"]} if f"view{place % 3}" in unusable else {}
        assert repr(vectors(alone, [column], given)) == repr([together[place]])


def test_an_input_among_many_that_does_not_fit_is_named():
    columns = [*VALUES[pa.int32()][1:] * MANY, VALUES[pa.int32()][0], *VALUES[pa.int32()][:1]]
    features = features_of([pa.int32()] * len(columns), pa.float64())
    with pytest.raises(UnusableFeature, match=f"view{MANY % 3}__input{MANY}"):
        vectors(features, columns, {})
