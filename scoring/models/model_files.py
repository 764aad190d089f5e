"""The files of one registered model version: fetched, bounded, and checked before anything in them is executed.

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

# A signature of 5000 inputs takes half of it; what is larger would hold the interpreter for seconds.
MAX_DESCRIPTION_BYTES = 1_000_000


class ModelFiles(msgspec.Struct, frozen=True):
    """One version's files in a folder of our own, and what may be loaded of them."""

    version: ModelVersion
    folder: Path
    description: dict[str, Any]
    """The MLmodel file, decoded."""
    signature: Signature
    output_column: int | None
    rules: LoadingRules

    @property
    def serialization(self) -> str:
        """Format of the model file, as the description tells it."""
        return str(self.description["flavors"]["sklearn"].get("serialization_format", "pickle"))

    @property
    def predict_function(self) -> str:
        """Name of the estimator's method that predicts."""
        return str(self.description["flavors"]["python_function"].get("predict_fn", "predict"))

    @property
    def model_file(self) -> Path:
        """The file that holds the estimator; it may lack."""
        return self.folder / str(self.description["flavors"]["python_function"].get("model_path", ""))

    def digest(self) -> str:
        """SHA-256 over names and contents of all files and the chosen output column, hex."""
        digest = hashlib.sha256(f"{self.output_column}".encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()):
            digest.update(f"\0{path.relative_to(self.folder)}\0{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


@contextlib.contextmanager
def version_folder() -> Iterator[Path]:
    """A scratch folder for one version's files, and for what is made of them while it is tried.

    Raises:
        NoRoom: it can't be made, or whatever ended the block came of there being no room.
    """
    with contextlib.ExitStack() as until_the_end:
        try:
            folder = until_the_end.enter_context(scratch_folder())
        except OSError as error:
            raise NoRoom(_place(), why_no_room(error) or first_line(error)) from error
        try:
            yield folder
        except NoRoom:
            raise
        except Exception as error:
            why = why_no_room(error)
            if why is None:
                raise
            raise NoRoom(_place(), why) from error


def _place() -> str:
    return tempfile.tempdir or os.environ.get("TMPDIR", "/tmp")  # noqa: S108 - not to write to, but to name


def fetch_model(registry: Registry, version: ModelVersion, destination: Path, rules: LoadingRules) -> ModelFiles:
    """Copy a version's files below `destination` and read their description. Nothing of them is executed.

    Raises:
        RegistryError: the files can't be fetched.
        ModelRefused: they are larger than `max_model_bytes` (told before fetching where the registry knows), can't be
            used, or are described as something that is not allowed.
    """
    _check_size(version, registry.size(version), rules)
    folder = registry.download(version, destination)
    _check_size(version, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), rules)
    files = read_model_files(version, folder, rules)
    _check_description(files)
    return files


def read_model_files(version: ModelVersion, folder: Path, rules: LoadingRules) -> ModelFiles:
    """Files that lie in `folder` already.

    Raises:
        ModelRefused: the description or its signature can't be used, or the output column's tag is no number.
    """
    description = _read_description(str(version), folder / "MLmodel")
    return ModelFiles(
        version=version,
        folder=folder,
        description=description,
        signature=_read_signature(str(version), description),
        output_column=_output_column(version, rules),
        rules=rules,
    )


def load_signature(registry: Registry, version: ModelVersion) -> Signature:
    """The signature of one version, without fetching the model itself.

    Raises:
        RegistryError: the MLmodel file can't be fetched.
        NoRoom: this machine has none for it.
        ModelRefused: it can't be read, or holds no usable signature.
    """
    with version_folder() as folder:
        description = _read_description(str(version), registry.download(version, folder, "MLmodel"))
    return _read_signature(str(version), description)


def check_format(files: ModelFiles) -> list[str]:
    """The types beyond skops' defaults that a file holds which may be loaded; none of another format than skops.

    Raises:
        ModelRefused: not a scikit-learn model, it brings code, or a format or type that is not allowed.
    """
    _check_description(files)
    return _check_skops_types(files) if files.serialization == "skops" else []


def _check_description(files: ModelFiles) -> None:
    model, flavors = str(files.version), files.description["flavors"]
    pyfunc, sklearn = flavors.get("python_function") or {}, flavors.get("sklearn") or {}
    if pyfunc.get("loader_module") != "mlflow.sklearn" or not sklearn:
        raise ModelRefused(
            model,
            f"it is not a scikit-learn model (its loader is {pyfunc.get('loader_module')!r}): log it with "
            "mlflow.sklearn.log_model.",
        )
    if sklearn.get("code") or pyfunc.get("code"):
        raise ModelRefused(model, "it brings Python code of its own (code_paths), which is not loaded.")
    if files.serialization not in files.rules.formats:
        raise ModelRefused(
            model,
            f"its format {files.serialization} is not allowed (SERVING_MODEL_FORMATS is "
            f"{','.join(files.rules.formats)}). Log it with serialization_format='skops', or allow the format if "
            "you trust whoever can write to the registry: such files run code.",
        )
    inside = files.model_file.resolve().is_relative_to(files.folder.resolve())
    if not inside or not files.model_file.is_file():
        raise ModelRefused(model, f"its model file {str(pyfunc.get('model_path', ''))!r} is missing.")


def _check_size(version: ModelVersion, size: int, rules: LoadingRules) -> None:
    if size > rules.max_bytes:
        raise ModelRefused(
            str(version),
            f"its files have {size} bytes, and SERVING_MAX_MODEL_BYTES allows {rules.max_bytes}.",
        )


def _read_description(model: str, file: Path) -> dict[str, Any]:
    import yaml

    try:
        if file.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise ModelRefused(model, f"its MLmodel file is larger than {MAX_DESCRIPTION_BYTES} bytes.")
        description = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ModelRefused(model, f"its MLmodel file can't be read ({first_line(error)}).") from None
    flavors = description.get("flavors") if isinstance(description, dict) else None
    if not isinstance(flavors, dict):
        raise ModelRefused(model, "its MLmodel file names no flavors.")
    if not all(flavor is None or isinstance(flavor, dict) for flavor in flavors.values()):
        raise ModelRefused(model, "its MLmodel file names a flavor without saying anything of it.")
    return dict(description)


def _read_signature(model: str, description: dict[str, Any]) -> Signature:
    signature = description.get("signature") or {}
    inputs = signature.get("inputs") if isinstance(signature, dict) else signature
    try:
        columns = msgspec.json.decode(inputs, type=list[dict[str, object]]) if inputs else None
    except (msgspec.MsgspecError, TypeError) as error:
        raise ModelRefused(model, f"the signature in its MLmodel file can't be read ({error}).") from None
    return read_signature(model, columns)


def _check_skops_types(files: ModelFiles) -> list[str]:
    import skops.io

    model = str(files.version)
    try:
        needed: list[str] = skops.io.get_untrusted_types(file=files.model_file)
    except Exception as error:  # a damaged archive raises zipfile's, json's and skops' own kinds
        raise ModelRefused(
            model, f"its file {files.model_file.name} can't be read as skops ({first_line(error)})."
        ) from None
    refused = sorted(set(needed) - set(files.rules.trusted_types))
    if refused:
        raise ModelRefused(
            model,
            f"its file holds types that are not allowed: {', '.join(refused)}. Add them to "
            "SERVING_SKOPS_TRUSTED_TYPES if you know them.",
        )
    return needed


def _output_column(version: ModelVersion, rules: LoadingRules) -> int | None:
    tag = version.tags.get(OUTPUT_COLUMN_TAG)
    if tag is None:
        return rules.output_column
    if not tag.isdecimal():
        raise ModelRefused(str(version), f"its tag {OUTPUT_COLUMN_TAG} is {tag!r}: a column counted from 0 is needed.")
    return int(tag)
