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
from scoring.files import scratch_folder
from scoring.settings import MissingFeaturesPolicy
from scoring.storage import Location
from scoring.transfer import Content, holding, publishing

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN_KEY = "serving.origin"
OUTCOME_KEY = "serving.outcome"
FILE = "manifest.json"
OUTPUT = "batch_output.parquet"
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


class Outcome(msgspec.Struct, frozen=True):
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
    outcome: Outcome
    parts: tuple[Content, ...] = ()
    """The files that hold the rows, in their order, named from the manifest's folder: where the Spark engine wrote it.
    None where batch_output.parquet holds them all."""


class Known(msgspec.Struct, frozen=True):
    """A file that was hashed before it was published."""

    stamp: str
    """`Location.stamp`. A rename on this machine leaves it as it is; in S3 the file gets another one."""
    content: Content


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


def write_manifest(output: Location, ours: Known) -> Manifest:
    """Write manifest.json beside a published batch_output.parquet, from what lies there now.

    That is `ours`, or else (another run's, or in S3) it is read back whole.

    Several runs of one request may do this at once: when the last of them has ended, file and manifest belong together.
    A run killed between the two leaves the older manifest, whose hash is not the output's; the next one mends it.

    Raises:
        StorageError: it can't be read or written.
    """
    while True:
        before = output.stamp()
        manifest = _manifest_of(output, ours)
        with publishing(output.parent / FILE) as part:
            part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)) + b"\n")
        # Whoever replaced the output since then may have written its manifest before ours: then ours must follow again.
        if output.stamp() == before:
            return manifest


def read_manifest(output: Location) -> Manifest:
    """The manifest beside a batch_output.parquet.

    Raises:
        FileNotFoundError: there is none.
        StorageError: it can't be read.
    """
    return msgspec.json.decode((output.parent / FILE).read_bytes(), type=Manifest)


def output_parts(folder: Location) -> list[Location]:
    """The files that hold the current output of a request whose folder this is, in the order of their rows.

    Raises:
        StorageError: the manifest can't be read.
    """
    try:
        parts = read_manifest(folder / OUTPUT).parts
    except FileNotFoundError:
        parts = ()
    return [folder / part.name for part in parts] or [folder / OUTPUT]


def _manifest_of(output: Location, ours: Known) -> Manifest:
    if output.stamp() == ours.stamp:
        with output.open() as file:
            return _manifest(ours.content, pq.read_metadata(file))
    with scratch_folder() as scratch, holding(output, scratch / output.name) as held:
        return _manifest(held.content(), pq.read_metadata(held.file))


def _manifest(content: Content, footer: pq.FileMetaData) -> Manifest:
    said = footer.metadata
    return Manifest(
        content,
        msgspec.json.decode(said[ORIGIN_KEY.encode()], type=Origin),
        msgspec.json.decode(said[OUTCOME_KEY.encode()], type=Outcome),
    )
