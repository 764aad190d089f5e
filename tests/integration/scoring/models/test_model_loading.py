"""Model files are code: only formats and types on our own list are loaded, and what is refused says why."""

import json
import os
import pickle
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import skops.io
from mlflow.models import infer_signature
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import ElasticNet

from scoring.errors import ModelRefused
from scoring.models.flavors.flavor import check_files
from scoring.models.model import Model, load_model
from scoring.models.model_files import fetch_model, load_signature, read_model_files
from scoring.models.registry import ModelVersion
from scoring.settings import SKLEARN_TYPES
from tests.support.model_folders import VERSION, FolderRegistry, edit, loading_rules

FRAME = pd.DataFrame({"b": [0.5, 1.5, 2.5, 3.5] * 10, "a": [1.0, 2.0, 4.0, 8.0] * 10})
TARGET = FRAME["a"] - FRAME["b"]


def saved(folder: Path, model: Any, **save: Any) -> Path:
    predict = getattr(model, save.get("pyfunc_predict_fn", "predict"))
    options = {"signature": infer_signature(FRAME, predict(FRAME)), "pip_requirements": ["scikit-learn"]} | save
    mlflow.sklearn.save_model(model, folder / "model", **options)
    return folder / "model"


def load(folder: Path, version: ModelVersion = VERSION, **settings: Any) -> Model:
    with tempfile.TemporaryDirectory() as copy:
        files = fetch_model(FolderRegistry(folder), version, Path(copy), loading_rules(**settings))
        return load_model(files)


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(ModelRefused) as caught:
        load(folder, **settings)
    text = str(caught.value)
    assert text.startswith("Model version m/1 was refused: ")
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "model", [ElasticNet(), RandomForestRegressor(5, random_state=0), HistGradientBoostingRegressor()], ids=repr
)
def test_the_registered_model_predicts_to_the_bit_as_its_pyfunc(tmp_path: Path, model: Any) -> None:
    folder = saved(tmp_path, model.fit(FRAME, TARGET), skops_trusted_types=list(SKLEARN_TYPES))
    loaded = load(folder)
    assert loaded.signature.names == ("b", "a")
    vectors = pa.Table.from_pandas(FRAME, schema=loaded.signature.schema, preserve_index=False)
    expected = mlflow.pyfunc.load_model(str(folder)).predict(FRAME)
    assert loaded.predict(vectors)["prediction"].to_pylist() == np.asarray(expected).tolist()


def test_the_signature_is_read_without_the_model(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (folder / "model.skops").unlink()
    assert load_signature(FolderRegistry(folder), VERSION).names == ("b", "a")


def test_a_chosen_column_is_a_number_from_0(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    with pytest.raises(ModelRefused, match="'first', not a column counted from 0"):
        load(folder, ModelVersion("m", 1, {"serving.output_column": "first"}))
    with pytest.raises(ModelRefused, match="not a column counted from 0"):
        load(folder, ModelVersion("m", 1, {"serving.output_column": "9" * 5000}))


@pytest.mark.parametrize("kind", ["pickle", "cloudpickle"])
def test_pickles_are_loaded_only_where_the_setting_allows_them(tmp_path: Path, kind: Any) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET), serialization_format=kind)
    problem = refusal(folder)
    assert f"its format {kind} is not allowed (SERVING_MODEL_FORMATS is skops)" in problem
    assert "mlflow.sklearn.autolog(serialization_format='skops', log_input_examples=True)" in problem
    assert load(folder, model_formats=("skops", kind)).signature.names == ("b", "a")


class Dangerous:
    """Unpickling it would leave a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


LOADS: list[str] = []


def load_slowly() -> ElasticNet:
    LOADS.append("begins")
    time.sleep(0.2)
    LOADS.append("ends")
    return ElasticNet().fit(FRAME, TARGET)


class LoadsSlowly:
    """Unpickling it takes a while, and is recorded."""

    def __reduce__(self) -> Any:
        return load_slowly, ()


def test_one_model_is_loaded_at_a_time(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET), serialization_format="pickle")
    (folder / "model.pkl").write_bytes(pickle.dumps(LoadsSlowly()))

    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(load, folder, model_formats=("pickle",)) for _ in range(2)]
        assert [each.result().signature.names for each in loads] == [("b", "a")] * 2

    assert LOADS == ["begins", "ends"] * 2


def test_a_pickle_that_calls_itself_skops_is_not_executed(tmp_path: Path) -> None:
    folder, mark = saved(tmp_path, ElasticNet().fit(FRAME, TARGET)), tmp_path / "mark"
    (folder / "model.skops").write_bytes(pickle.dumps(Dangerous(mark)))
    assert "can't be read as skops" in refusal(folder)
    assert not mark.exists()


def test_a_skops_file_is_held_against_our_list_not_its_own(tmp_path: Path) -> None:
    folder, mark = saved(tmp_path, ElasticNet().fit(FRAME, TARGET)), tmp_path / "mark"
    crafted = ElasticNet().fit(FRAME, TARGET)
    crafted.callback = os.system
    skops.io.dump(crafted, folder / "model.skops")
    edit(folder, lambda description: description["flavors"]["sklearn"].update(skops_trusted_types=["posix.system"]))
    assert "posix.system" in refusal(folder)
    assert not mark.exists()


def test_an_autologged_model_is_loaded_with_the_arguments_that_the_refusal_names(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("t", artifact_location=(tmp_path / "artifacts").as_uri())
    try:
        mlflow.sklearn.autolog(serialization_format="skops", log_input_examples=True, silent=True)
        with mlflow.start_run(experiment_id=experiment):
            ElasticNet().fit(FRAME, TARGET)
    finally:
        mlflow.sklearn.autolog(disable=True)
    (logged,) = mlflow.search_logged_models([experiment], output_format="list")
    folder = Path(mlflow.artifacts.download_artifacts(logged.artifact_location))
    assert load(folder).signature.names == ("b", "a")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    file = folder / "model.skops"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "flipped":
        # In the stored (compressed) bytes of the schema: a flip elsewhere may hit nothing that counts.
        with zipfile.ZipFile(file) as archive:
            offset = archive.getinfo("schema.json").header_offset + 60
        content[offset] ^= 0xFF
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    refusal(folder)


def test_what_is_no_scikit_learn_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    edit(folder, lambda description: description["flavors"]["python_function"].update(loader_module="os"))
    assert "its loader 'os' is not supported: log it with mlflow.sklearn.log_model" in refusal(folder)


def test_a_model_that_brings_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("raise RuntimeError")
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET), code_paths=[str(tmp_path / "own.py")])
    assert "includes Python code" in refusal(folder)


def test_a_model_path_outside_the_model_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (tmp_path / "elsewhere.skops").write_bytes((folder / "model.skops").read_bytes())
    edit(folder, lambda description: description["flavors"]["python_function"].update(model_path="../elsewhere.skops"))
    assert "'../elsewhere.skops' is missing" in refusal(folder)


@pytest.mark.parametrize("value", [["a"], "a\0b", "a" * 5000, "a\nb", 7], ids=["list", "null", "long", "lines", "int"])
@pytest.mark.parametrize("key", ["loader_module", "model_path", "serialization_format"])
def test_nonsense_in_a_description_is_refused(tmp_path: Path, key: str, value: Any) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    flavor = "sklearn" if key == "serialization_format" else "python_function"
    edit(folder, lambda description: description["flavors"][flavor].update({key: value}))
    assert str(tmp_path) not in refusal(folder)


def test_an_alias_in_a_description_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    levels = (f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 10)}]}}" for level in range(1, 30))
    file = folder / "MLmodel"
    file.write_text("\n".join(("a0: &a0 {k: 1}", *levels, file.read_text())))
    assert "can't be read (it has an alias)" in refusal(folder)


def test_a_number_of_a_million_digits_in_a_description_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (folder / "MLmodel").write_text("a: " + "1:" * 400_000 + "1")
    assert "can't be read (it has a number of more than 100 digits)" in refusal(folder)


def test_a_deeply_nested_signature_is_refused_and_nested_outputs_are_ignored(tmp_path: Path) -> None:
    folder, nested = saved(tmp_path, ElasticNet().fit(FRAME, TARGET)), '[{"name":' * 50_000
    load(edit(folder, lambda description: description["signature"].update(outputs=nested)))
    edit(folder, lambda description: description["signature"].update(inputs=nested))
    assert "the signature in its MLmodel file can't be read (maximum recursion depth" in refusal(folder)


def test_a_skops_file_is_not_unpacked_in_the_serving_process(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (folder / "model.skops").write_bytes(b"")
    files = read_model_files(VERSION, folder, loading_rules())
    check_files(files)
    with pytest.raises(ModelRefused, match="can't be read as skops"):
        load_model(files)


@pytest.mark.parametrize("content", ["", "[]", "a: [", "flavors: 7", "a: 2020-99-99", "a: !!timestamp b", "\x00"])
def test_a_damaged_description_is_refused(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    (folder / "MLmodel").write_text(content)
    refusal(folder)


def test_a_damaged_signature_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET))
    for inputs in ("not json", json.dumps({"a": 1}), json.dumps([{"name": "b", "type": []}]), 7):
        edit(folder, lambda description, inputs=inputs: description["signature"].update(inputs=inputs))
        refusal(folder)


def test_a_model_without_a_signature_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, ElasticNet().fit(FRAME, TARGET), signature=None)
    edit(folder, lambda description: description.pop("signature", None))
    assert "without a signature. Log it with signature=mlflow.models.infer_signature(" in refusal(folder)
    edit(folder, lambda description: description.update(signature={"inputs": "[]"}))
    assert "without a signature." in refusal(folder)


def test_the_refusal_has_the_lines_that_add_a_signature_from_the_input_example(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = mlflow.create_experiment("t", artifact_location=(tmp_path / "artifacts").as_uri())
    with mlflow.start_run(experiment_id=experiment):
        logged = mlflow.sklearn.log_model(
            ElasticNet().fit(FRAME, TARGET),
            name="model",
            signature=False,
            input_example=FRAME.head(),
            pip_requirements=["scikit-learn"],
        )
    folder = Path(mlflow.artifacts.download_artifacts(logged.artifact_path))
    lines = refusal(folder).partition("Add one: ")[2]
    exec(lines)  # noqa: S102 - what the refusal says to run
    assert load(folder).signature.names == ("b", "a")
