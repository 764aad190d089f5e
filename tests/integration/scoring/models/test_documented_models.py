"""Each example of docs/models.md registers a version that is served."""

import re
import warnings
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import infer_signature

from scoring.models.admission import validate
from scoring.models.model_files import fetch_model
from scoring.models.registry import MlflowRegistry
from tests.integration.scoring.models.libraries import CLASS, FRAME, NUMBER
from tests.support.compose import ROOT
from tests.support.model_folders import loading_rules

SECTION = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").partition("## Model libraries\n")[2]
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION.partition("\n## ")[0], re.DOTALL)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> MlflowRegistry:
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    experiment = mlflow.create_experiment("t", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment(experiment_id=experiment)
    return MlflowRegistry(uri, uri)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda code: re.findall(r"mlflow\.\w+\.\w+", code)[0])
@pytest.mark.filterwarnings("ignore")  # of MLflow, which infers the requirements and types of what it logs
def test_an_example_registers_a_version_that_is_served(
    example: str, registry: MlflowRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # MLflow would load the model in a process of its own to infer its requirements.
    monkeypatch.setattr(mlflow.models, "infer_pip_requirements", lambda *_, fallback=None, **__: fallback)
    given: dict[str, Any] = {"mlflow": mlflow, "infer_signature": infer_signature, "frame": FRAME.fillna(0.0)}
    given |= {"target": NUMBER, "labels": np.array(["low", "mid", "high"])[CLASS], "codes": CLASS}
    before = len(mlflow.search_model_versions())
    try:
        exec(example, given)  # noqa: S102 - the documentation
    finally:
        mlflow.sklearn.autolog(disable=True)
    assert len(mlflow.search_model_versions()) == before + 1
    files = fetch_model(registry, registry.version("churn", before + 1), tmp_path, loading_rules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, report = validate(files)
    assert (report.source, report.same_in_any_batch) == ("input_example", True)


def test_every_library_has_an_example() -> None:
    logged = {name for example in EXAMPLES for name in re.findall(r"mlflow\.(\w+)\.log_model", example)}
    assert logged == {"sklearn", "xgboost", "lightgbm", "catboost", "onnx"}
