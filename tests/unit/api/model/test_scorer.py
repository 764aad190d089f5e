"""A model is called once for complete rows, whatever it returns, and again only to find the rows on which it raises."""

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest

from api.inference.micro_batch import PendingRequest, RequestResult, split
from api.model.scorer import OnlineScorer
from scoring.arrow.signature import ModelInput, Signature
from scoring.errors import PredictionFailed
from scoring.features.model_features import Feature, ModelFeatures, View
from scoring.models.model import Model
from scoring.models.outputs import OutputColumn, Outputs
from scoring.models.registry import ModelVersion
from scoring.online.lookup import Lookup, vectors_of
from scoring.online.number_inputs import number_inputs
from scoring.online.reading import Numbers, StoreRead
from scoring.predict import Policy

FEATURES = ModelFeatures(
    service="service",
    join_keys=(),
    features=(Feature("input", "view:feature", pa.float64(), ("view",)),),
    views=(View("view", ("view:feature",), None),),
    request_inputs=(),
    signature=Signature((ModelInput("input", pa.float64()),)),
)
READ = StoreRead({"view": np.full(2, 5.0)}, {}, (Numbers(("view:feature",), pa.float64(), np.array([[1.0, 2.0]])),))
DOUBLE, LABEL, COUNT = OutputColumn("predict", "double"), OutputColumn("label", "string"), OutputColumn("n", "int64")


def score(outputs: Outputs, *functions: Callable[[np.ndarray], Any]) -> list[RequestResult]:
    """Score two complete rows as the API does, with a model of these functions."""
    model = Model(ModelVersion("m", 1), FEATURES.signature, outputs, functions, as_array=True)
    scorer = OnlineScorer.__new__(OnlineScorer)
    scorer.model, scorer.features, scorer.lately_scored = model, FEATURES, None
    scorer._policy, scorer._search_s, scorer.proven = Policy(), math.inf, False
    online = vectors_of(Lookup(mock.Mock(), None, number_inputs(FEATURES, model)), FEATURES, READ, {}, 6.0)
    assert online.array is not None
    scores = scorer.score({}, online)
    assert scorer.proven
    return split(scores, [PendingRequest(scorer, {}, 2)])


@pytest.mark.parametrize(
    ("outputs", "functions", "expected"),
    [
        (Outputs((DOUBLE,)), [lambda x: x[:, 0]], [[1.0, 2.0]]),
        (Outputs((DOUBLE,)), [lambda x: x[:, 0].astype(int)], [[1.0, 2.0]]),
        (Outputs((DOUBLE,)), [lambda x: list(x[:, 0])], [[1.0, 2.0]]),
        (Outputs((DOUBLE,)), [lambda x: np.where(x[:, 0] == 1, np.nan, x[:, 0])], [[None, 2.0]]),
        (Outputs((DOUBLE,), chosen=1), [lambda x: np.c_[x, 3 * x]], [[3.0, 6.0]]),
        (Outputs((LABEL,)), [lambda x: np.where(x[:, 0] == 1, "a", "b")], [["a", "b"]]),
        (Outputs((DOUBLE, COUNT)), [lambda x: x[:, 0], lambda x: x[:, 0].astype(int)], [[1.0, 2.0], [1, 2]]),
    ],
    ids=["float", "integer", "list", "nan", "chosen", "labels", "several functions"],
)
def test_a_model_is_called_once_for_complete_rows(outputs, functions, expected):
    calls = [mock.Mock(side_effect=function) for function in functions]
    [scores] = score(outputs, *calls)
    assert scores.outputs == expected
    assert scores.reasons == ["not_finite" if value is None else None for value in expected[0]]
    assert [each.call_count for each in calls] == [1] * len(functions)


def test_a_model_that_raises_keeps_the_rows_on_which_it_does_not():
    def fails(array: np.ndarray) -> np.ndarray:
        if (array == 1).any():
            raise ZeroDivisionError
        return array[:, 0]

    [scores] = score(Outputs((DOUBLE,)), fails)
    assert (scores.outputs, scores.reasons) == ([[None, 2.0]], ["model_failed", None])


def test_a_lack_of_memory_is_not_searched_for_in_rows():
    with pytest.raises(PredictionFailed) as caught:
        score(Outputs((DOUBLE,)), mock.Mock(side_effect=MemoryError))
    assert caught.value.transient
