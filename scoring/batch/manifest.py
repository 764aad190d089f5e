"""Provenance of a result, sufficient to reproduce it byte for byte.

batch_output.parquet contains the provenance in its own metadata, so that the two can't diverge. manifest.json repeats
it in a human-readable file, with the hash of the output. It contains no timestamps, so reruns are identical.
"""

import functools
import importlib.metadata
import platform
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import pyarrow.parquet as pq

from scoring.errors import BatchRequestError, StillWritten
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location, storage_errors
from scoring.files.transfer import Content, holding, publishing
from scoring.foreign_errors import first_line
from scoring.models.outputs import PREDICTION, OutputType
from scoring.settings import MissingFeaturesPolicy

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN_KEY = "serving.origin"
SUMMARY_KEY = "serving.outcome"
INPUT_NAME = "batch_input.parquet"
PARTED_INPUT_NAME = "batch_input.json"
OUTPUT_NAME = "batch_output.parquet"
MANIFEST_NAME = "manifest.json"
# Packages whose version can change a bit of the result.
SOFTWARE = (
    "scikit-learn", "xgboost", "xgboost-cpu", "lightgbm", "catboost", "onnxruntime", "numpy", "scipy", "pandas",
    "pyarrow", "duckdb", "feast", "mlflow", "skops",
)  # fmt: skip


class Origin(msgspec.Struct, frozen=True):
    """The sources of a batch input."""

    request: Content
    """The request file."""
    model: str
    """`name/version`."""
    feature_service: str
    definitions_hash: str
    """Hash of the Feast registry's definitions (`AppliedDefinitions.hash`)."""


class ScoringSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a batch input was scored, and row counts."""

    batch_input: Content
    missing_features: MissingFeaturesPolicy
    impute_values: dict[str, float | int | bool | str | None]
    rows: int
    scored: int
    reasons: dict[str, int]
    """Reason → number of rows, sorted by reason."""
    software: dict[str, str]
    """Package → version; see SOFTWARE."""
    outputs: dict[str, OutputType] = {}
    """Output column → its type, in the file's order. Empty if a number `prediction` is the only one."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Return the names of the output columns."""
        return tuple(self.outputs) or (PREDICTION,)


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """manifest.json."""

    batch_output: Content
    origin: Origin
    outcome: ScoringSummary
    parts: tuple[Content, ...] = ()
    """Files written by the Spark engine, in row order; names are relative to the manifest's folder. Empty if
    batch_output.parquet contains all rows."""


@functools.cache
def software_versions() -> Mapping[str, str]:
    """Return the versions of Python and of this process's packages that results depend on."""
    # Cached, because reading them takes 10 ms, a fifth of the time of a small request.
    versions = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return types.MappingProxyType(versions)


def unreadable(file: Location, error: BaseException) -> BatchRequestError:
    """Return the error for a request or batch input that can't be read, with the remedy."""
    if isinstance(error, StillWritten):
        problem = "it kept changing while it was read: another process is writing to it."
    elif isinstance(error, FileNotFoundError):
        made = file.name in {INPUT_NAME, PARTED_INPUT_NAME}
        problem = "there is no such file" + (": materialize batch_input first." if made else ".")
    else:
        problem = f"it can't be read ({first_line(error)}): materialize batch_input again."
    return BatchRequestError(str(file), problem)


def read_origin(schema: "pa.Schema", place: str) -> Origin:
    """Return the origin in a batch input's schema; `place` names the input in the error.

    Raises:
        BatchRequestError: the schema has no origin.
    """
    try:
        return msgspec.json.decode((schema.metadata or {})[ORIGIN_KEY.encode()], type=Origin)
    except (KeyError, msgspec.MsgspecError):
        raise BatchRequestError(
            place, "it does not say which model it is for: materialize batch_input again."
        ) from None


def as_json(value: msgspec.Struct) -> bytes:
    """Return the bytes of a human-readable JSON file."""
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def settle_manifest(output: Location, ours: Manifest) -> Manifest:
    """Make manifest.json match batch_output.parquet in the same folder after both are published. Return its content.

    Another run may replace the output between the two writes; the manifest is then rebuilt from the new output. When
    the last of several such runs ends, both match. A run that ends between the two writes, because it is killed or
    manifest.json can't be replaced, leaves an older manifest, which the next run repairs.

    Args:
        output: batch_output.parquet.
        ours: the manifest that was published.

    Raises:
        StorageError: the output can't be read, or the manifest can't be written.
    """
    manifest = ours
    while not _matches(manifest, output):
        with scratch_folder() as scratch, holding(output, scratch / output.name) as held:
            manifest = _manifest_of(held.content(), pq.read_metadata(held.file))
        with publishing(output.parent / MANIFEST_NAME) as part:
            part.write_bytes(as_json(manifest))
    return manifest


def _matches(manifest: Manifest, output: Location) -> bool:
    # Metadata and size suffice: the same input, version, policy and software give the same bytes.
    with output.open() as file, storage_errors("reading", output):
        size, footer = file.size(), pq.read_metadata(file)
    return size == manifest.batch_output.size and _manifest_of(manifest.batch_output, footer) == manifest


def _manifest_of(content: Content, footer: pq.FileMetaData) -> Manifest:
    return Manifest(
        content,
        msgspec.json.decode(footer.metadata[ORIGIN_KEY.encode()], type=Origin),
        msgspec.json.decode(footer.metadata[SUMMARY_KEY.encode()], type=ScoringSummary),
    )


def read_manifest(output: Location) -> Manifest:
    """Read the manifest in the folder of a batch_output.parquet.

    Raises:
        FileNotFoundError: there is no manifest.
        StorageError: it can't be read.
    """
    return msgspec.json.decode((output.parent / MANIFEST_NAME).read_bytes(), type=Manifest)


def output_parts(folder: Location) -> list[Location]:
    """Return the files of the current output in a request's folder, in row order.

    Raises:
        StorageError: the manifest can't be read.
    """
    return published_output(folder)[0]


def published_output(folder: Location) -> tuple[list[Location], tuple[str, ...]]:
    """Return the files of the current output in a request's folder, in row order, and its output columns.

    Raises:
        StorageError: the manifest can't be read.
    """
    try:
        manifest = read_manifest(folder / OUTPUT_NAME)
    except FileNotFoundError:
        return [folder / OUTPUT_NAME], (PREDICTION,)
    return [folder / part.name for part in manifest.parts] or [folder / OUTPUT_NAME], manifest.outcome.output_names
