"""A version whose columns would clash with those of a request or of its output is refused when it is linked."""

import msgspec
import pyarrow as pa
import pytest

from scoring.arrow.signature import OUTPUT_COLUMNS, ModelInput, Signature
from scoring.errors import ModelRefused
from scoring.feast_plugins.join_keys import JoinKey
from scoring.features.model_features import Feature, ModelFeatures
from scoring.models.outputs import ONE_NUMBER, OutputColumn, Outputs
from scoring.models.registry import ModelVersion
from scoring.serving import _check_names, check_output_names
from tests.support.fakes import features

VERSION = ModelVersion("m", 1)


def link(computed: str = "x", requested: str = "amount", key: str = "id") -> ModelFeatures:
    signature = Signature((ModelInput(computed, pa.float64()), ModelInput(requested, pa.float64())))
    made = Feature(computed, f"v__{computed}", pa.float64(), ("v",))
    fake = features(JoinKey(key, "int64"), request_inputs={requested: pa.float64()})
    return msgspec.structs.replace(fake, signature=signature, features=(made,))


@pytest.mark.parametrize("name", [*OUTPUT_COLUMNS, "Reason"])
def test_no_column_has_the_name_of_an_output_column(name: str) -> None:
    added = "has the name of a column that scoring adds to the output (prediction, reason, model_name, model_version,"
    for linked, what, remedy in (
        (link(computed=name), "input", f"rename it in the model, for example to .* view__{name}."),
        (link(requested=name), "input", "rename it in the model, or in the feature definitions."),
        (link(key=name), "request column", "rename it in the model, or in the feature definitions."),
    ):
        with pytest.raises(ModelRefused, match=remedy) as caught:
            _check_names(VERSION, linked)
        assert f"its {what} '{name}' {added}" in str(caught.value)


def test_no_feature_has_the_name_of_a_column_of_the_request() -> None:
    for name in ("event_timestamp", "ID", "amount"):
        with pytest.raises(ModelRefused, match=r"a column of each request \(id, amount, event_timestamp\): rename it"):
            _check_names(VERSION, link(computed=name))
    _check_names(VERSION, link())
    _check_names(VERSION, link(computed="v__reason", requested="id"))  # a key may be an input


def test_no_column_has_the_name_of_one_of_several_outputs() -> None:
    outputs = Outputs((OutputColumn("label", "string"), OutputColumn("gold", "double")))
    for linked, what in (
        (link(computed="Prediction_Gold"), "input 'Prediction_Gold'"),
        (link(requested="prediction_gold"), "input 'prediction_gold'"),
        (link(key="prediction_label"), "request column 'prediction_label'"),
    ):
        _check_names(VERSION, linked)
        with pytest.raises(
            ModelRefused, match=f"its {what} has the name of one of its outputs in a batch output: rename"
        ):
            check_output_names(VERSION, linked, outputs)
        check_output_names(VERSION, linked, ONE_NUMBER)
    check_output_names(VERSION, link(computed="gold"), outputs)
