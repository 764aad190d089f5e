"""Results in several files: each generation has its own folder, and a small file next to them names the current one.

Replacing that file publishes all files of a generation at once, on a disk and in S3, which can't rename a folder or
several files atomically. A replaced generation is kept for a day, for readers that are still using it.
"""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence

import msgspec

from scoring.batch.manifest import (
    INPUT_NAME,
    MANIFEST_NAME,
    OUTPUT_NAME,
    PARTED_INPUT_NAME,
    Manifest,
    Origin,
    as_json,
    unreadable,
)
from scoring.files.location import Location
from scoring.files.transfer import Content, publishing, remove_file

INPUT_PARTS, OUTPUT_PARTS = "batch_input", "batch_output"
KEPT_S = 24 * 3600


class PartedInput(msgspec.Struct, frozen=True):
    """batch_input.json: the joined rows of a request, and the files that hold them."""

    batch_input: Content
    origin: Origin
    rows: int
    parts: tuple[Content, ...]
    """In row order; names are relative to the folder of batch_input.json."""


@contextlib.contextmanager
def generation(folder: Location, kind: str) -> Iterator[str]:
    """Provide the name of a new folder below `folder / kind`. Remove the folder and its files if the block raises.

    The first run that publishes more than a day later removes the leftovers of a killed process.
    """
    name = f"{kind}/{uuid.uuid4().hex}"
    try:
        yield name
    except BaseException:
        with contextlib.suppress(OSError):
            _remove_folder(folder / name)
        for empty in (folder / kind, folder):  # a refused request leaves no empty folders behind
            if empty.local is not None:
                with contextlib.suppress(OSError):  # it holds an older result
                    empty.local.rmdir()
        raise


def whole(name: str, parts: Sequence[Content]) -> Content:
    """Describe parts as one file, with the sum of their sizes and the SHA-256 of their SHA-256 digests."""
    digest = hashlib.sha256(b"".join(bytes.fromhex(part.sha256) for part in parts))
    return Content(name, sum(part.size for part in parts), digest.hexdigest())


def publish_input(folder: Location, origin: Origin, rows: int, parts: Sequence[Content]) -> Content:
    """Publish these parts as the request's joined rows.

    Raises:
        StorageError: batch_input.json can't be written. It still names the earlier parts.
    """
    content = whole(INPUT_PARTS, parts)
    with publishing(folder / PARTED_INPUT_NAME) as part:
        part.write_bytes(as_json(PartedInput(content, origin, rows, tuple(parts))))
    remove_file(folder / INPUT_NAME)
    _remove_replaced(folder, INPUT_PARTS, parts)
    return content


def publish_output(folder: Location, manifest: Manifest) -> None:
    """Publish the manifest's parts as the request's scored rows.

    Raises:
        StorageError: manifest.json can't be written. It still names the earlier parts.
    """
    with publishing(folder / MANIFEST_NAME) as part:
        part.write_bytes(as_json(manifest))
    remove_file(folder / OUTPUT_NAME)
    _remove_replaced(folder, OUTPUT_PARTS, manifest.parts)


def read_parted_input(folder: Location) -> PartedInput:
    """Read the description of a request's joined rows.

    Raises:
        BatchRequestError: there is no batch_input.json, or it can't be read.
        StorageError: the folder can't be reached.
    """
    file = folder / PARTED_INPUT_NAME
    try:
        return msgspec.json.decode(file.read_bytes(), type=PartedInput)
    except (FileNotFoundError, msgspec.MsgspecError) as error:
        raise unreadable(file, error) from None


def _remove_replaced(folder: Location, kind: str, current: Sequence[Content]) -> None:
    """Remove the generations of a kind that were not written to for a day, but not the current one."""
    from pyarrow.fs import FileSelector

    named = {part.name.split("/")[1] for part in current}
    with contextlib.suppress(OSError):  # leftovers are harmless, and the next run tries again
        filesystem, path = (folder / kind).filesystem()
        # The files' times decide, because folders in S3 have none.
        found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        newest: dict[str, float] = {}
        for each in found:
            name = each.path.removeprefix(f"{path}/").split("/")[0]
            newest[name] = max(newest.get(name, 0), (each.mtime_ns or 0) / 1e9)
        for name, written in newest.items():
            if name not in named and written < time.time() - KEPT_S:
                filesystem.delete_dir(f"{path}/{name}")


def _remove_folder(folder: Location) -> None:
    from pyarrow.fs import FileType

    filesystem, path = folder.filesystem()
    if filesystem.get_file_info(path).type == FileType.Directory:
        filesystem.delete_dir(path)
