"""Data, and what the tests of all model libraries do with a saved model."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from mlflow.models import infer_signature

from scoring.errors import ModelRefused
from scoring.models.admission import ValidationReport, validate
from scoring.models.model import Model
from scoring.models.model_files import ModelFiles, read_model_files
from scoring.models.registry import ModelVersion
from scoring.models.trial_load import validate_in_trial
from tests.support.model_folders import loading_rules

RANDOM = np.random.default_rng(7)
ROWS = 300
FRAME = pd.DataFrame(
    {
        "c": RANDOM.normal(size=ROWS),
        "a": RANDOM.normal(size=ROWS).astype("float32"),
        "n": RANDOM.integers(0, 9, ROWS),
        "gap": np.where(RANDOM.random(ROWS) < 0.2, np.nan, RANDOM.normal(size=ROWS)),
    }
)
NUMBER = (FRAME["c"] - FRAME["a"] * FRAME["n"] + RANDOM.normal(size=ROWS)).to_numpy()
CLASS = np.digitize(NUMBER, [-2.0, 2.0])
EXAMPLE = FRAME.dropna().head(20)


def save(save_model: Callable[..., Any], folder: Path, output: Any, frame: pd.DataFrame = EXAMPLE, **own: Any) -> Path:
    """Save a model with a signature and an input example. `output` is what it predicts for the frame."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about integer columns, which can't have gaps
        options = {
            "signature": infer_signature(frame, output),
            "input_example": frame,
            "pip_requirements": ["mlflow"],  # MLflow would run the model in a process of its own to infer them
        }
        save_model(path=folder / "model", **options | own)
    return folder / "model"


def files_in(folder: Path, tags: dict[str, str] | None = None, **settings: Any) -> ModelFiles:
    return read_model_files(ModelVersion("m", 1, tags or {}), folder, loading_rules(**settings))


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelRefused) as caught:
        validate(files_in(folder, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_on_trial(folder: Path) -> str:
    with pytest.raises(ModelRefused) as caught:
        validate_in_trial(files_in(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def served(folder: Path, tags: dict[str, str] | None = None, **settings: Any) -> tuple[Model, ValidationReport]:
    return validate(files_in(folder, tags, **settings))


def predicted(model: Model, frame: pd.DataFrame = FRAME) -> np.ndarray:
    """The predictions as the library returns them: (rows,) for one output, (rows, outputs) for several."""
    vectors = pa.Table.from_pandas(frame, schema=model.signature.schema, preserve_index=False)
    outputs = [column.to_numpy() for column in model.predict(vectors).columns]
    return outputs[0] if len(outputs) == 1 else np.column_stack(outputs)


def assert_same(model: Model, expected: np.ndarray, frame: pd.DataFrame = FRAME) -> None:
    """The same bits for all rows together, in parts of any size, and alone."""
    expected = np.asarray(expected)
    expected = expected[:, 0] if expected.ndim == 2 and expected.shape[1] == 1 else expected
    assert np.array_equal(predicted(model, frame), expected)
    for rows in (1, 5, 17):
        parts = [predicted(model, frame.iloc[first : first + rows]) for first in range(0, 51, rows)]
        assert np.array_equal(np.concatenate(parts), expected[: sum(map(len, parts))])


def damaged(file: Path, damage: str) -> None:
    """Damage a file: `empty`, `half`, `end` (its last bytes are missing), or `noise`."""
    content = file.read_bytes()
    noise = np.random.default_rng(1).bytes(len(content))
    file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "end": content[:-9], "noise": noise}[damage])
