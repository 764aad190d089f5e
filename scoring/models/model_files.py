"""Fetches the files of one registered model version, and checks their size and content before any code is executed.

Model files are code. The settings decide which formats and types may be loaded; lists in a model's own files are
ignored.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from scoring.arrow.signature import Signature, read_signature
from scoring.errors import ModelRefused, NoRoom
from scoring.files.atomic import scratch_folder
from scoring.foreign_errors import first_line, why_no_room
from scoring.models.loading_rules import LoadingRules
from scoring.models.output_description import read_declared
from scoring.models.outputs import OutputType
from scoring.models.registry import ModelVersion, Registry
from scoring.models.tags import OUTPUT_COLUMN_TAG, OUTPUTS_TAG, RANK_BY_TAG

# A signature of 5000 inputs takes half of it. Parsing a much larger file would block the interpreter for seconds.
MAX_DESCRIPTION_BYTES = 1_000_000
# Numbers in base 60 (1:30 is 90) take quadratic time: a million digits would stall the interpreter for minutes.
MAX_NUMBER_LENGTH = 100


class ModelFiles(msgspec.Struct, frozen=True):
    """One version's files in a folder of this process, and the rules for loading them."""

    version: ModelVersion
    folder: Path
    description: dict[str, Any]
    """The decoded MLmodel file."""
    signature: Signature
    output_column: int | None
    rules: LoadingRules

    @property
    def functions(self) -> tuple[str, ...]:
        """Return the names of the model's functions that predict, in the order of their outputs."""
        named = self.version.tags.get(OUTPUTS_TAG, "")
        names = tuple(name.strip() for name in named.split(",") if name.strip())
        return names or (str(self.flavor("python_function").get("predict_fn", "predict")),)

    @property
    def declared_outputs(self) -> list[tuple[str | None, OutputType]]:
        """Return name and type of the outputs in the signature; empty without any."""
        outputs = (self.description.get("signature") or {}).get("outputs")
        try:
            return read_declared(msgspec.json.decode(outputs or "[]", type=list[dict[str, Any]]))
        except (msgspec.MsgspecError, TypeError, RecursionError):
            return []  # what the model returns describes them as well

    def flavor(self, name: str) -> dict[str, Any]:
        """Return what the description says about one flavor; empty without it."""
        return self.description["flavors"].get(name) or {}

    def file(self, name: object) -> Path:
        """Return the path of a file that the description names.

        Raises:
            ModelRefused: there is no such file below the folder.
        """
        path = self.folder / str(name or "")
        try:
            found = path.resolve().is_relative_to(self.folder.resolve()) and path.is_file()
        except (OSError, ValueError):  # no file may have such a name
            found = False
        if not found:
            raise ModelRefused(str(self.version), f"its model file {str(name or '')!r} is missing: log it again.")
        return path

    def digest(self) -> str:
        """Return the SHA-256 of the names and contents of all files and of the choice of outputs, as hex."""
        chosen = (self.output_column, *(self.version.tags.get(tag) for tag in (OUTPUTS_TAG, RANK_BY_TAG)))
        digest = hashlib.sha256(repr(chosen).encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest.update(f"\0{path.relative_to(self.folder)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


class DescribedFiles(ModelFiles, frozen=True):
    """One version of which only the description was fetched."""

    def file(self, name: object) -> Path:
        """Return the path that a file would have."""
        return self.folder / str(name or "")


@contextlib.contextmanager
def version_folder() -> Iterator[Path]:
    """Provide a scratch folder for one version's files, and for those of its trial.

    Raises:
        NoRoom: it can't be created, or the block ended because the machine has no room.
    """
    made = False
    try:
        with scratch_folder() as folder:
            made = True
            yield folder
    except NoRoom:
        raise
    except Exception as error:
        why = why_no_room(error)
        if why is None and (made or not isinstance(error, OSError)):
            raise
        place = tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - only named, not written to
        raise NoRoom(place, why or first_line(error)) from error


def fetch_model(registry: Registry, version: ModelVersion, destination: Path, rules: LoadingRules) -> ModelFiles:
    """Copy a version's files below `destination` and read their description, without executing them.

    Raises:
        RegistryError: the files can't be fetched.
        ModelRefused: they are too large (checked before the download if the registry knows their size), or their
            description can't be used.
    """
    _check_size(version, registry.size(version), rules)
    folder = registry.download(version, destination)
    _check_size(version, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), rules)
    return read_model_files(version, folder, rules)


def read_model_files(version: ModelVersion, folder: Path, rules: LoadingRules) -> ModelFiles:
    """Read the description of files that are already in `folder`.

    Raises:
        ModelRefused: the description or its signature can't be used, or the tag of the output column is not a number.
    """
    description = _read_description(str(version), folder / "MLmodel")
    signature = _read_signature(str(version), description)
    return ModelFiles(version, folder, description, signature, _output_column(version, rules), rules)


def load_signature(registry: Registry, version: ModelVersion) -> Signature:
    """Return the signature of one version, without fetching the model itself.

    Raises:
        RegistryError: the MLmodel file can't be fetched.
        NoRoom: this machine has no room for it.
        ModelRefused: it can't be read, or has no usable signature.
    """
    with version_folder() as folder:
        description = _read_description(str(version), registry.download(version, folder, "MLmodel"))
    return _read_signature(str(version), description)


def fetch_description(registry: Registry, version: ModelVersion, destination: Path, rules: LoadingRules) -> ModelFiles:
    """Return one version's description, without fetching the model itself.

    Raises:
        RegistryError: the MLmodel file can't be fetched.
        ModelRefused: as `read_model_files`.
    """
    description = _read_description(str(version), registry.download(version, destination, "MLmodel"))
    signature = _read_signature(str(version), description)
    return DescribedFiles(version, destination, description, signature, _output_column(version, rules), rules)


def _check_size(version: ModelVersion, size: int, rules: LoadingRules) -> None:
    if size > rules.max_bytes:
        reason = f"its files have {size} bytes, and SERVING_MAX_MODEL_BYTES allows {rules.max_bytes}."
        raise ModelRefused(str(version), reason)


def _read_description(model: str, file: Path) -> dict[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no types
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has an alias")  # a few lines of them could expand to any size
            return super().compose_node(parent, index)

        def construct_yaml_int(self, node: Any) -> int:
            if len(node.value) > MAX_NUMBER_LENGTH:
                raise ValueError(f"it has a number of more than {MAX_NUMBER_LENGTH} digits")
            return int(super().construct_yaml_int(node))

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    if file.stat().st_size > MAX_DESCRIPTION_BYTES:
        raise ModelRefused(model, f"its MLmodel file is larger than {MAX_DESCRIPTION_BYTES} bytes.")
    try:
        description = yaml.load(file.read_text(encoding="utf-8"), Loader)  # noqa: S506 - it is a SafeLoader
    except Exception as error:  # crafted files may raise anything
        raise ModelRefused(model, f"its MLmodel file can't be read ({first_line(error)}).") from None
    flavors = description.get("flavors") if isinstance(description, dict) else None
    if not isinstance(flavors, dict) or not all(each is None or isinstance(each, dict) for each in flavors.values()):
        raise ModelRefused(model, "its MLmodel file has no flavors, or one that is not a mapping.")
    return dict(description)


def _read_signature(model: str, description: dict[str, Any]) -> Signature:
    signature = description.get("signature") or {}
    inputs = signature.get("inputs") if isinstance(signature, dict) else signature
    try:
        columns = msgspec.json.decode(inputs, type=list[dict[str, object]]) if inputs else None
    except (msgspec.MsgspecError, TypeError, RecursionError) as error:
        raise ModelRefused(model, f"the signature in its MLmodel file can't be read ({error}).") from None
    if not columns:
        raise ModelRefused(model, f"it was logged without a signature. {_how_to_sign(description)}")
    return read_signature(model, columns)


def _how_to_sign(description: dict[str, Any]) -> str:
    """Return the lines that add a signature to a logged model, as one line."""
    if description.get("model_id"):
        uri = f"models:/{description['model_id']}"
    elif description.get("run_id"):
        uri = f"runs:/{description['run_id']}/{description.get('artifact_path')}"
    else:
        return "Log it with signature=mlflow.models.infer_signature(features, predictions)."
    frame = "... (rows of its inputs, as a frame)"
    if description.get("saved_input_example_info"):
        frame = "mlflow.models.Model.load(uri).load_input_example(mlflow.artifacts.download_artifacts(uri))"
    return (
        f"Add one: import mlflow; uri = {uri!r}; frame = {frame}; predictions = mlflow.pyfunc.load_model(uri)"
        ".predict(frame); mlflow.models.set_signature(uri, mlflow.models.infer_signature(frame, predictions))"
    )


def _output_column(version: ModelVersion, rules: LoadingRules) -> int | None:
    tag = version.tags.get(OUTPUT_COLUMN_TAG)
    if tag is None:
        return rules.output_column
    if not (tag.isdecimal() and len(tag) < 10):
        raise ModelRefused(str(version), f"its tag {OUTPUT_COLUMN_TAG} is {tag!r}, not a column counted from 0.")
    return int(tag)
