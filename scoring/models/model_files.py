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
from scoring.errors import ModelRefused, NoRoom, first_line, why_no_room
from scoring.files.atomic import scratch_folder
from scoring.models.loading_rules import LoadingRules
from scoring.models.registry import OUTPUT_COLUMN_TAG, ModelVersion, Registry

# A signature of 5000 inputs takes half of it. Parsing a much larger file would block the interpreter for seconds.
MAX_DESCRIPTION_BYTES = 1_000_000


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
    def serialization(self) -> str:
        """Return the format of the model file, according to the description."""
        return str(self.description["flavors"]["sklearn"].get("serialization_format", "pickle"))

    @property
    def predict_function(self) -> str:
        """Return the name of the estimator's method that predicts."""
        return str(self.description["flavors"]["python_function"].get("predict_fn", "predict"))

    @property
    def model_file(self) -> Path:
        """Return the path of the file that contains the estimator. It may be missing."""
        return self.folder / str(self.description["flavors"]["python_function"].get("model_path", ""))

    def digest(self) -> str:
        """Return the SHA-256 of the names and contents of all files and of the output column, as hex."""
        digest = hashlib.sha256(f"{self.output_column}".encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest.update(f"\0{path.relative_to(self.folder)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


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
        ModelRefused: they are too large (checked before the download if the registry knows their size), their
            description can't be used, or it names something that is not allowed.
    """
    _check_size(version, registry.size(version), rules)
    folder = registry.download(version, destination)
    _check_size(version, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), rules)
    files = read_model_files(version, folder, rules)
    _check_description(files)
    return files


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


def check_format(files: ModelFiles) -> list[str]:
    """Return the types in a skops file, beyond the defaults of skops, that may be loaded; empty for other formats.

    Raises:
        ModelRefused: it is not a scikit-learn model, it includes code, or a format or type is not allowed.
    """
    _check_description(files)
    return _check_skops_types(files) if files.serialization == "skops" else []


def _check_description(files: ModelFiles) -> None:
    model, flavors = str(files.version), files.description["flavors"]
    pyfunc, sklearn = flavors.get("python_function") or {}, flavors.get("sklearn") or {}
    if pyfunc.get("loader_module") != "mlflow.sklearn" or not sklearn:
        loader = pyfunc.get("loader_module")
        reason = f"it is not a scikit-learn model (its loader is {loader!r}): log it with mlflow.sklearn.log_model."
        raise ModelRefused(model, reason)
    if sklearn.get("code") or pyfunc.get("code"):
        raise ModelRefused(model, "it includes Python code, which is never loaded: log it without code_paths.")
    if files.serialization not in files.rules.formats:
        raise ModelRefused(
            model,
            f"its format {files.serialization} is not allowed (SERVING_MODEL_FORMATS is "
            f"{','.join(files.rules.formats)}). Log it with mlflow.sklearn.log_model(..., "
            "serialization_format='skops', skops_trusted_types=[...]) or mlflow.sklearn.autolog("
            "serialization_format='skops', log_input_examples=True), or allow the format if you trust everyone who can "
            "write to the registry: such files run code.",
        )
    inside = files.model_file.resolve().is_relative_to(files.folder.resolve())
    if not inside or not files.model_file.is_file():
        raise ModelRefused(model, f"its model file {str(pyfunc.get('model_path', ''))!r} is missing: log it again.")


def _check_skops_types(files: ModelFiles) -> list[str]:
    import skops.io

    model = str(files.version)
    try:
        needed: list[str] = skops.io.get_untrusted_types(file=files.model_file)
    except Exception as error:  # for a damaged archive, classes of zipfile, json and skops
        reason = f"its file {files.model_file.name} can't be read as skops ({first_line(error)})."
        raise ModelRefused(model, reason) from None
    refused = sorted(set(needed) - set(files.rules.trusted_types))
    if refused:
        raise ModelRefused(
            model,
            f"its file contains types that are not allowed: {', '.join(refused)}. Add them to "
            "SERVING_SKOPS_TRUSTED_TYPES if you trust them.",
        )
    return needed


def _check_size(version: ModelVersion, size: int, rules: LoadingRules) -> None:
    if size > rules.max_bytes:
        reason = f"its files have {size} bytes, and SERVING_MAX_MODEL_BYTES allows {rules.max_bytes}."
        raise ModelRefused(str(version), reason)


def _read_description(model: str, file: Path) -> dict[str, Any]:
    import yaml

    try:
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise ModelRefused(model, f"its MLmodel file is larger than {MAX_DESCRIPTION_BYTES} bytes.")
        description = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
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
    except (msgspec.MsgspecError, TypeError) as error:
        raise ModelRefused(model, f"the signature in its MLmodel file can't be read ({error}).") from None
    return read_signature(model, columns)


def _output_column(version: ModelVersion, rules: LoadingRules) -> int | None:
    tag = version.tags.get(OUTPUT_COLUMN_TAG)
    if tag is None:
        return rules.output_column
    if not tag.isdecimal():
        raise ModelRefused(str(version), f"its tag {OUTPUT_COLUMN_TAG} is {tag!r}, not a column counted from 0.")
    return int(tag)
