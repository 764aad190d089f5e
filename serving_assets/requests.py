"""Batch request files and the partitions that stand for them: partition key = name of the file without its ending."""

import os
import re
from pathlib import Path

import dagster as dg
import msgspec

from scoring.batch_request import SUFFIXES
from scoring.errors import BatchRequestError

batch_requests = dg.DynamicPartitionsDefinition(name="batch_requests")

# A key becomes a folder's name and is shown and typed by people. Dagster itself keeps "..." for ranges.
SAFE_KEY = re.compile(r"[\w][\w.\-]{0,99}")
SAFE_KEY_TEXT = "1 to 100 letters, digits, '_', '-' or '.', the first a letter, a digit or '_', without '...'"


class RequestFile(msgspec.Struct, frozen=True):
    """One batch request as it lies in the request folder."""

    key: str
    name: str
    modified_ns: int
    """When it was last written, in nanoseconds since 1970."""


def is_safe_key(key: str) -> bool:
    """Whether a partition key can be the name of a file and of a folder of ours."""
    return bool(SAFE_KEY.fullmatch(key)) and "..." not in key


def list_requests(folder: Path) -> list[RequestFile]:
    """Every file in the folder that may be a batch request, oldest first. Hidden files are someone's unfinished work.

    Raises:
        BatchRequestError: there is no such folder.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = Path(entry.name)
                if path.suffix in SUFFIXES and not entry.name.startswith(".") and entry.is_file():
                    found.append(RequestFile(path.stem, entry.name, entry.stat().st_mtime_ns))
    except FileNotFoundError:
        raise BatchRequestError(
            str(folder), "there is no such folder: make it, or set SERVING_BATCH_REQUESTS."
        ) from None
    return sorted(found, key=lambda file: (file.modified_ns, file.name))


def find_request(folder: Path, key: str) -> Path:
    """The file of one batch request.

    Raises:
        BatchRequestError: the key is no safe name, or there is no such file, or several that differ in their ending.
    """
    if not is_safe_key(key):
        raise BatchRequestError(repr(key), f"a request's name needs {SAFE_KEY_TEXT}.")
    found = [file for suffix in SUFFIXES if (file := folder / f"{key}{suffix}").is_file()]
    if not found:
        raise BatchRequestError(str(folder / key), f"there is no such file with an ending {', '.join(SUFFIXES)}.")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise BatchRequestError(str(folder / key), f"{names} would share one result: rename all but one.")
    return found[0]


def input_file(artifacts: Path, key: str) -> Path:
    """Where the request's joined features are written."""
    return artifacts / key / "batch_input.parquet"


def output_file(artifacts: Path, key: str) -> Path:
    """Where the request's scores are written."""
    return artifacts / key / "batch_output.parquet"
