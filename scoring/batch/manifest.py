"""Where a result comes from: enough to trace it, and to make the same bytes again.

batch_output.parquet bears all of it itself, so that the two can't drift apart; manifest.json repeats it for people and
other programs, with the hash of the file. Nothing in it tells the time: a run again gives the same bytes.
"""

import functools
import importlib.metadata
import platform
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import pyarrow.parquet as pq

from scoring.errors import BatchRequestError
from scoring.files.atomic import scratch_folder
from scoring.files.location import Location, telling
from scoring.files.transfer import Content, holding, publishing
from scoring.settings import MissingFeaturesPolicy

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN_KEY = "serving.origin"
OUTCOME_KEY = "serving.outcome"
MANIFEST_NAME = "manifest.json"
OUTPUT_NAME = "batch_output.parquet"
SOFTWARE = ("scikit-learn", "numpy", "scipy", "pandas", "pyarrow", "duckdb", "feast", "mlflow", "skops")


class Origin(msgspec.Struct, frozen=True):
    """What a batch_input.parquet was made from."""

    request: Content
    """The request file."""
    model: str
    """`name/version`."""
    feature_service: str
    definitions_hash: str
    """Of the Feast registry's definitions (`AppliedDefinitions.hash`)."""


class ScoringSummary(msgspec.Struct, frozen=True):
    """How a batch_output.parquet was made, and what came out."""

    batch_input: Content
    missing_features: MissingFeaturesPolicy
    impute_values: dict[str, float | int | bool | str | None]
    rows: int
    scored: int
    reasons: dict[str, int]
    """Reason → number of rows, by name."""
    software: dict[str, str]
    """Package → version, of those whose version can change a bit of the result."""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """manifest.json."""

    batch_output: Content
    origin: Origin
    outcome: ScoringSummary
    parts: tuple[Content, ...] = ()
    """The files that hold the rows, in their order, named from the manifest's folder: where the Spark engine wrote it.
    None where batch_output.parquet holds them all."""


@functools.cache
def software_versions() -> Mapping[str, str]:
    """Python and the packages of this process that results depend on."""
    # Once a process: reading them takes 10 ms, a fifth of what a small request takes.
    versions = {"python": platform.python_version()}
    for package in SOFTWARE:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return types.MappingProxyType(versions)


def read_origin(schema: "pa.Schema", shown: str) -> Origin:
    """What a batch_input.parquet says of itself in its schema; `shown` names it in the error.

    Raises:
        BatchRequestError: it does not say it.
    """
    try:
        return msgspec.json.decode((schema.metadata or {})[ORIGIN_KEY.encode()], type=Origin)
    except (KeyError, msgspec.MsgspecError):
        raise BatchRequestError(
            shown, "it does not say which model it is for: materialize batch_input again."
        ) from None


def as_bytes(manifest: Manifest) -> bytes:
    """What manifest.json holds."""
    return msgspec.json.format(msgspec.json.encode(manifest)) + b"\n"


def settle_manifest(output: Location, ours: Manifest) -> Manifest:
    """Once both are published, see to it that manifest.json is of the batch_output.parquet that lies there.

    It is not where another run of the same request replaced the output before the manifest: then that one is read back
    whole. When the last of several such runs has ended, file and manifest belong together. A run that ends between the
    two, killed or because the second can't be replaced, leaves an older manifest; the next one mends it.

    Args:
        output: batch_output.parquet.
        ours: what was published as manifest.json.

    Raises:
        StorageError: the one can't be read, or the other can't be written.
    """
    manifest = ours
    while not _is_of(manifest, output):
        manifest = _read_back(output)
        with publishing(output.parent / MANIFEST_NAME) as part:
            part.write_bytes(as_bytes(manifest))
    return manifest


def read_manifest(output: Location) -> Manifest:
    """The manifest beside a batch_output.parquet.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it can't be read.
    """
    return msgspec.json.decode((output.parent / MANIFEST_NAME).read_bytes(), type=Manifest)


def output_parts(folder: Location) -> list[Location]:
    """The files that hold the current output of a request whose folder this is, in the order of their rows.

    Raises:
        StorageError: the manifest can't be read.
    """
    try:
        parts = read_manifest(folder / OUTPUT_NAME).parts
    except FileNotFoundError:
        parts = ()
    return [folder / part.name for part in parts] or [folder / OUTPUT_NAME]


def _is_of(manifest: Manifest, output: Location) -> bool:
    # What the file says of itself and its size tell: the same input, version, policy and software give the same bytes.
    with output.open() as file, telling("reading", output):
        size, footer = file.size(), pq.read_metadata(file)
    return size == manifest.batch_output.size and _manifest(manifest.batch_output, footer) == manifest


def _read_back(output: Location) -> Manifest:
    with scratch_folder() as scratch, holding(output, scratch / output.name) as held:
        return _manifest(held.content(), pq.read_metadata(held.file))


def _manifest(content: Content, footer: pq.FileMetaData) -> Manifest:
    said = footer.metadata
    return Manifest(
        content,
        msgspec.json.decode(said[ORIGIN_KEY.encode()], type=Origin),
        msgspec.json.decode(said[OUTCOME_KEY.encode()], type=ScoringSummary),
    )
