"""What a training script's frames and arrays become in a baseline."""

import numpy as np
import pandas as pd
import pytest

from scoring.monitoring.baseline import measure_training

LABELS = np.array(["no", "yes", "no", "no"])


@pytest.mark.parametrize(
    "predictions",
    [LABELS, list(LABELS), LABELS.reshape(-1, 1), pd.Series(LABELS), pd.DataFrame({"label": LABELS}), {"x": LABELS}],
    ids=["array", "list", "column", "series", "frame", "mapping"],
)
def test_one_output_is_the_prediction(predictions):
    baseline = measure_training(
        pd.DataFrame({"rate": [0.5, None, 0.25, 1.0], "active": [True, True, None, False]}), predictions
    )

    assert list(baseline.columns) == ["rate", "active", "prediction"]
    assert (baseline.rows, baseline.source) == (4, "training")
    assert baseline.columns["rate"].nulls == baseline.columns["active"].nulls == 0.25
    assert baseline.columns["active"].categories == ["true", "false"]
    assert baseline.columns["prediction"].categories == ["no", "yes"]
    assert baseline.columns["prediction"].shares == [0.75, 0.25, 0.0]


@pytest.mark.parametrize("kind", [dict, pd.DataFrame])
def test_several_outputs_have_their_names(kind):
    baseline = measure_training(pd.DataFrame({"rate": range(4)}), kind({"label": LABELS, "yes": np.ones(4)}))

    assert list(baseline.columns) == ["rate", "prediction_label", "prediction_yes"]
    assert baseline.columns["prediction_yes"].edges is not None
