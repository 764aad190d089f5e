"""What a training script's frames and arrays become in a baseline."""

import logging
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pytest

from scoring.files.location import Location
from scoring.models.registry import ModelVersion
from scoring.monitoring.baseline import (
    BASELINE_FILE,
    MAX_BASELINE_BYTES,
    content_in,
    log_baseline,
    measure_training,
    read_baseline,
)

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


@pytest.mark.parametrize("predictions", [np.ones((4, 2)), {"no": np.ones(4), "yes": np.ones((4, 2))}])
def test_an_array_of_several_outputs_is_refused_with_the_remedy(predictions):
    with pytest.raises(
        ValueError, match=r"^8 predictions for 4 rows: pass one per row, or .* a mapping of their names"
    ):
        measure_training(pd.DataFrame({"rate": range(4)}), predictions)


VERSION = ModelVersion("m", 1, {}, 0)
COLUMN = {"values": 1000, "nulls": 0.0, "shares": [0.25, 0.25, 0.5], "edges": [1.0, 2.0]}


def content(version: object = 1, **changed: object) -> bytes:
    return msgspec.json.encode({"rows": 1000, "columns": {"x": COLUMN | changed}, "version": version})


@pytest.mark.parametrize("first_day", [False, True])
@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (content() + b" " * MAX_BASELINE_BYTES, "it has more than 2,000,000 bytes"),
        (b"{", "Input data was truncated"),
        (b'{"rows": 1, "columns": {"\xff": 1}}', "can't decode byte 0xff"),
        (b'{"other": ' + b"[" * 100_000, "recursion"),
        (content(version=2), "Invalid enum value 2 - at `$.version`"),
        (content(shares=[-0.5, 0.5, 1.0]), "Expected `float` >= 0.0"),
        (content(nulls=2.0), "Expected `float` <= 1.0"),
        (content(edges=[2.0, 1.0]), "the edges do not ascend"),
    ],
    ids=["too large", "cut", "not UTF-8", "deep", "another version", "negative", "above 1", "unsorted"],
)
def test_an_invalid_baseline_counts_as_none_and_is_reported_once(
    stored: bytes, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, *, first_day: bool
) -> None:
    place = tmp_path / ("_baseline/m-1.json" if first_day else BASELINE_FILE)
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(stored)
    assert read_baseline(VERSION, content(), None) is not None

    with caplog.at_level(logging.WARNING):
        assert read_baseline(VERSION, content_in(tmp_path), Location(tmp_path)) is None

    (message,) = caplog.messages
    assert message.startswith(f"The baseline {place if first_day else f'{BASELINE_FILE} of m/1'} is not used: ")
    assert reason in message


def test_a_baseline_that_is_too_large_is_not_logged() -> None:
    with pytest.raises(ValueError, match="more than 2,000,000 bytes"):
        log_baseline("m-1", pd.DataFrame({"x": ["a" * MAX_BASELINE_BYTES]}), [1.0])
