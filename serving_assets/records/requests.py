"""Batch request files and the partitions that stand for them: partition key = name of the file without its ending."""

import hashlib
import re
import warnings
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import dagster as dg
import msgspec

from scoring.batch.request import SUFFIXES
from scoring.errors import BatchRequestError, StorageError
from scoring.files.location import Location

batch_requests = dg.DynamicPartitionsDefinition(name="batch_requests")

GROUP = "batch"

batch_request = dg.AssetSpec(
    "batch_request",
    partitions_def=batch_requests,
    group_name=GROUP,
    kinds={"file"},
    description="A file of entity rows in the request folder, somebody else's work. Its data version is the hash of "
    "the content that was read last, so what was made of older content shows as stale.",
)

# A key becomes a folder's name and is shown and typed by people. Dagster itself keeps "..." for ranges.
SAFE_KEY = re.compile(r"[\w][\w.\-]{0,99}")
SAFE_KEY_TEXT = "1 to 100 letters, digits, '_', '-' or '.', the first a letter, a digit or '_', without '...'"
# A file of ours lies under this name where the request's own folder would. In capitals it is the same on some disks.
VERSION_FILE_NAME = "registered_model_version.json"


def request_asset(**options: Any) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """`dg.asset` with these options, made of one batch request each; one run makes those of many."""
    with warnings.catch_warnings():
        # Else each start of webserver, daemon and run tells people that backfill_policy is in beta (dagster 1.13).
        warnings.simplefilter("ignore", dg.BetaWarning)
        single_run = dg.BackfillPolicy.single_run()
        decorate: Callable[[Callable[..., Any]], dg.AssetsDefinition]
        decorate = dg.asset(partitions_def=batch_requests, backfill_policy=single_run, group_name=GROUP, **options)
        return decorate


class NoRequestFolder(BatchRequestError):
    """There is no request folder. It is not made, because a misspelt one would then stay empty without a word."""

    def __init__(self, folder: Location) -> None:
        super().__init__(str(folder), "there is no such folder: make it, or set SERVING_BATCH_REQUESTS.")


class RequestFile(msgspec.Struct, frozen=True):
    """One batch request as it lies in the request folder."""

    key: str
    name: str
    size: int
    """Bytes."""
    modified_ns: int
    """When it was last written, in nanoseconds since 1970."""
    shared: bool = False
    """Whether these are several files that would share one result. They are refused together, whatever they hold."""

    @property
    def fingerprint(self) -> str:
        """What tells a changed file from an unchanged one without reading it."""
        return f"{self.name} {self.size} {self.modified_ns}"


class Folder(msgspec.Struct, frozen=True):
    """What lies in the request folder."""

    requests: tuple[RequestFile, ...]
    """Every file that can be a batch request, oldest first."""
    others: tuple[str, ...]
    """Names of the other files, but hidden ones: those are someone's unfinished work."""

    @property
    def not_taken(self) -> str:
        """Which files are no requests, and why; empty if there are none."""
        if not self.others:
            return ""
        shown = ", ".join(repr(name) for name in self.others[:10])
        more = f" and {len(self.others) - 10} more" if len(self.others) > 10 else ""
        return (
            f"Not taken: {shown}{more}. A request's name needs {SAFE_KEY_TEXT}, and ends in {', '.join(SUFFIXES)}; "
            f"{VERSION_FILE_NAME} is the name of a file of ours."
        )


def is_safe_key(key: str) -> bool:
    """Whether a partition key can be the name of a file and of a folder of ours."""
    return bool(SAFE_KEY.fullmatch(key)) and "..." not in key and key.lower() != VERSION_FILE_NAME


def list_requests(folder: Location) -> tuple[RequestFile, ...]:
    """Every file in the folder that can be a batch request, oldest first.

    Raises:
        NoRequestFolder, StorageError: as `read_request_folder`.
    """
    return read_request_folder(folder).requests


def read_request_folder(folder: Location) -> Folder:
    """What lies in the request folder. Folders in it are not looked into.

    Raises:
        NoRequestFolder: there is no such folder on this machine. A prefix of a bucket is there without an object.
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
        if name.suffix in SUFFIXES and is_safe_key(name.stem):
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


def find_request(folder: Location, key: str) -> Location:
    """The file of one batch request.

    Raises:
        BatchRequestError: the key is no safe name, or there is no such file, or several that differ in their ending.
        StorageError: the folder can't be reached.
    """
    if not is_safe_key(key):
        raise BatchRequestError(
            repr(key), f"a request's name needs {SAFE_KEY_TEXT}, and not to be {VERSION_FILE_NAME}."
        )
    found = [file for suffix in SUFFIXES if (file := folder / f"{key}{suffix}").exists()]
    if not found:
        raise BatchRequestError(str(folder / key), f"there is no such file with an ending {', '.join(SUFFIXES)}.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise BatchRequestError(str(folder / key), f"{names} would share one result: rename all but one.")
    return found[0]


def read_hash(folder: Location, request: RequestFile) -> str:
    """SHA-256 of the file's content, hex; of several that share a result: of how they look.

    Raises:
        FileNotFoundError: it is gone.
        StorageError: it can't be read.
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
    """Where the request's joined features and its scores are written."""
    return artifacts / key
