"""Where a result comes from: enough to trace it, and to make the same bytes again.

batch_output.parquet holds all of it in its own metadata, so that the two can't drift apart. manifest.json repeats it
for people and other programs, with the hash of the file. It holds no time: another run gives the same bytes.
"""

import functools
import importlib.metadata
import platform
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import pyarrow.parquet as pq

from scoring.errors import BatchRequestError, StillWritten, first_line
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location, storage_errors
from scoring.files.transfer import Content, holding, publishing
from scoring.settings import MissingFeaturesPolicy

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN_KEY = "serving.origin"
SUMMARY_KEY = "serving.outcome"
INPUT_NAME = "batch_input.parquet"
PARTED_INPUT_NAME = "batch_input.json"
OUTPUT_NAME = "batch_output.parquet"
MANIFEST_NAME = "manifest.json"
# The packages whose version can change a bit of the result.
SOFTWARE = ("scikit-learn", "numpy", "scipy", "pandas", "pyarrow", "duckdb", "feast", "mlflow", "skops")


class Origin(msgspec.Struct, frozen=True):
    """What a batch input was made from."""

    request: Content
    """The request file."""
    model: str
    """`name/version`."""
    feature_service: str
    definitions_hash: str
    """Of the Feast registry's definitions (`AppliedDefinitions.hash`)."""


class ScoringSummary(msgspec.Struct, frozen=True):
    """How a batch output was made, and its counts."""

    batch_input: Content
    missing_features: MissingFeaturesPolicy
    impute_values: dict[str, float | int | bool | str | None]
    rows: int
    scored: int
    reasons: dict[str, int]
    """Reason → number of rows, sorted by reason."""
    software: dict[str, str]
    """Package → version; see SOFTWARE."""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """manifest.json."""

    batch_output: Content
    origin: Origin
    outcome: ScoringSummary
    parts: tuple[Content, ...] = ()
    """The files that the Spark engine wrote, in the order of their rows, named from the manifest's folder. Empty where
    batch_output.parquet holds all rows."""


@functools.cache
def software_versions() -> Mapping[str, str]:
    """Python and the packages of this process that results depend on."""
    # Cached: reading them takes 10 ms, a fifth of what a small request takes.
    versions = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return types.MappingProxyType(versions)


def unreadable(file: Location, error: BaseException) -> BatchRequestError:
    """The error of a request, or of what was made from one, that can't be read; it says what to do."""
    if isinstance(error, StillWritten):
        problem = "it kept changing while it was read: another process is writing to it."
    elif isinstance(error, FileNotFoundError):
        made = file.name in {INPUT_NAME, PARTED_INPUT_NAME}
        problem = "there is no such file" + (": materialize batch_input first." if made else ".")
    else:
        problem = f"it can't be read ({first_line(error)}): materialize batch_input again."
    return BatchRequestError(str(file), problem)


def read_origin(schema: "pa.Schema", place: str) -> Origin:
    """The origin in a batch input's schema; `place` names the input in the error.

    Raises:
        BatchRequestError: the schema holds none.
    """
    try:
        return msgspec.json.decode((schema.metadata or {})[ORIGIN_KEY.encode()], type=Origin)
    except (KeyError, msgspec.MsgspecError):
        raise BatchRequestError(
            place, "it does not say which model it is for: materialize batch_input again."
        ) from None


def as_json(value: msgspec.Struct) -> bytes:
    """The bytes of a JSON file that people read, too."""
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def settle_manifest(output: Location, ours: Manifest) -> Manifest:
    """Make manifest.json match the batch_output.parquet beside it, once both are published; returns what it holds.

    They differ where another run of the same request replaced the output before the manifest: the manifest is then made
    from that output. When the last of several such runs ends, both match. A run that ends between the two, killed or
    because manifest.json can't be replaced, leaves an older manifest, and the next run mends it.

    Args:
        output: batch_output.parquet.
        ours: what was published as manifest.json.

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
    """The manifest beside a batch_output.parquet.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it can't be read.
    """
    return msgspec.json.decode((output.parent / MANIFEST_NAME).read_bytes(), type=Manifest)


def output_parts(folder: Location) -> list[Location]:
    """The files that hold a request's current output, in the order of their rows, from the request's folder.

    Raises:
        StorageError: the manifest can't be read.
    """
    try:
        parts = read_manifest(folder / OUTPUT_NAME).parts
    except FileNotFoundError:
        parts = ()
    return [folder / part.name for part in parts] or [folder / OUTPUT_NAME]
