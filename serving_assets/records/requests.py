"""Batch request files and their partitions: the partition key is the file's name without its extension."""

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import dagster as dg
import msgspec

from scoring.batch.request import SUFFIXES
from scoring.errors import BatchRequestError, StorageError, listed
from scoring.files.location import Location
from scoring.monitoring.challenger_report import REPORT_NAME

batch_requests = dg.DynamicPartitionsDefinition(name="batch_requests")

GROUP = "batch"

BATCH_REQUEST = dg.AssetKey("batch_request")

# A key is also the name of a folder, and users read and type it. Dagster uses "..." in ranges.
SAFE_KEY = re.compile(r"[\w][\w.\-]{0,99}")
SAFE_KEY_TEXT = "1 to 100 letters, digits, '_', '-' or '.', the first a letter, a digit or '_', without '...'"
VERSION_FILE_NAME = "registered_model_version.json"
# Files of this project have these names beside the result folders. Some file systems ignore case.
RESERVED = (VERSION_FILE_NAME, REPORT_NAME)


def request_asset(**options: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return `dg.asset` for an asset with one partition per batch request; one run materializes many of them."""
    with warnings.catch_warnings():
        # Dagster 1.13 warns at each start of a webserver, daemon and run that backfill_policy is in beta.
        warnings.simplefilter("ignore", dg.BetaWarning)
        single_run = dg.BackfillPolicy.single_run()
        decorate: Callable[[Callable[..., Any]], dg.AssetsDefinition]
        decorate = dg.asset(partitions_def=batch_requests, backfill_policy=single_run, group_name=GROUP, **options)
        return decorate


def observable_asset(spec: dg.AssetSpec) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Return a decorator for an asset that another process writes. Dagit marks it as observed, not as missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # as above
        decorate: Callable[[Callable[..., Any]], dg.AssetsDefinition] = dg.multi_observable_source_asset(specs=[spec])
        return decorate


class NoRequestFolder(BatchRequestError):
    """The request folder does not exist. It is not created, because a misspelled one would always stay empty."""

    def __init__(self, folder: Location) -> None:
        super().__init__(str(folder), "there is no such folder: create it, or set SERVING_BATCH_REQUESTS.")


class RequestFile(msgspec.Struct, frozen=True):
    """One batch request in the request folder."""

    key: str
    name: str
    size: int
    """Bytes."""
    modified_ns: int
    """Modification time in nanoseconds since 1970."""
    shared: bool = False
    """Whether several files would share one result. They are refused together, regardless of their content."""

    @property
    def fingerprint(self) -> str:
        """Return a string that differs for changed files, without reading them."""
        return f"{self.name} {self.size} {self.modified_ns}"


class Folder(msgspec.Struct, frozen=True):
    """The files of the request folder."""

    requests: tuple[RequestFile, ...]
    """All files that can be a batch request, oldest first."""
    others: tuple[str, ...]
    """Names of the other files, except hidden ones, which are incomplete."""

    @property
    def ignored(self) -> str:
        """Return which files are not requests, and why; empty if there are none."""
        if not self.others:
            return ""
        return (
            f"Ignored: {listed([repr(name) for name in self.others])}. Rename or convert them: a request's name needs "
            f"{SAFE_KEY_TEXT}, and one of the extensions {', '.join(SUFFIXES)}; {' and '.join(RESERVED)} are reserved."
        )


def is_safe_key(key: str) -> bool:
    """Return whether a partition key can be the name of a file and of a result folder."""
    return bool(SAFE_KEY.fullmatch(key)) and "..." not in key and key.lower() not in RESERVED


def list_requests(folder: Location) -> tuple[RequestFile, ...]:
    """Return all files in the folder that can be a batch request, oldest first.

    Raises:
        NoRequestFolder, StorageError: see `read_request_folder`.
    """
    return read_request_folder(folder).requests


def read_request_folder(folder: Location) -> Folder:
    """List the request folder, without its subfolders.

    Raises:
        NoRequestFolder: there is no such folder on this machine. An S3 prefix without objects is an empty folder.
        StorageError: it can't be listed.
    """
    try:
        entries = folder.files()
    except FileNotFoundError:
        raise NoRequestFolder(folder) from None
    requests: dict[str, RequestFile] = {}
    others = []
    for entry in entries:
        name = PurePath(entry.name)
        if name.suffix.lower() in SUFFIXES and is_safe_key(name.stem):
            file = RequestFile(name.stem, entry.name, entry.size, entry.modified_ns)
            requests[file.key] = _together(requests[file.key], file) if file.key in requests else file
        elif not entry.name.startswith("."):
            others.append(entry.name)
    in_order = sorted(requests.values(), key=lambda file: (file.modified_ns, file.name))
    return Folder(tuple(in_order), tuple(sorted(others)))


def _together(one: RequestFile, other: RequestFile) -> RequestFile:
    names = " ".join(sorted([*one.name.split(" "), other.name]))
    latest = max(one.modified_ns, other.modified_ns)
    return RequestFile(one.key, names, one.size + other.size, latest, shared=True)


def find_request(folder: Location, files: Mapping[str, RequestFile], key: str) -> Location:
    """Return the file of one batch request.

    Args:
        folder: the request folder.
        files: its files by key.
        key: the key of the request.

    Raises:
        BatchRequestError: the key is not a safe name, there is no such file, or several have this name.
    """
    if not is_safe_key(key):
        raise BatchRequestError(
            repr(key),
            f"a request's name needs {SAFE_KEY_TEXT}; {' and '.join(RESERVED)} are reserved: rename the file.",
        )
    file = files.get(key)
    if file is None:
        extensions = ", ".join(SUFFIXES)
        raise BatchRequestError(str(folder / key), f"there is no such file with one of the extensions {extensions}.")
    if file.shared:
        names = ", ".join(file.name.split(" "))
        raise BatchRequestError(str(folder / key), f"{names} would share one result: rename all but one.")
    return folder / file.name


def read_hash(folder: Location, request: RequestFile) -> str:
    """Return the SHA-256 of the file's content (hex), or of the fingerprint if several files share a result.

    Raises:
        FileNotFoundError: the file is gone.
        StorageError: the file can't be read.
    """
    if request.shared:
        return hashlib.sha256(request.fingerprint.encode()).hexdigest()
    file = folder / request.name
    try:
        with file.open() as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError("reading", str(file), error) from error


def result_folder(artifacts: Location, key: str) -> Location:
    """Return the folder of the request's joined features and scores."""
    return artifacts / key
