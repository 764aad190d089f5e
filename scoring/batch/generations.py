"""Results in several files: each generation in a folder of its own, and one small file beside them names the current.

Replacing that one file publishes all of a generation's at once, on a disk as in S3, which can rename neither many files
nor a folder. A generation that was replaced stays for a day, for readers that have begun to read it.
"""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Iterator, Sequence

import msgspec

from scoring.batch.manifest import MANIFEST_NAME, OUTPUT_NAME, Manifest, Origin
from scoring.errors import BatchRequestError, StorageError
from scoring.files.location import Location
from scoring.files.transfer import Content, publishing

PARTED_INPUT = "batch_input.json"
INPUT = "batch_input.parquet"
INPUT_PARTS, OUTPUT_PARTS = "batch_input", "batch_output"
KEPT_S = 24 * 3600


class PartedInput(msgspec.Struct, frozen=True):
    """batch_input.json: the joined rows of a request, and in which files they are."""

    batch_input: Content
    origin: Origin
    rows: int
    parts: tuple[Content, ...]
    """In the order of their rows, named from the file's own folder."""


@contextlib.contextmanager
def generation(folder: Location, kind: str) -> Iterator[str]:
    """A name for a new folder below `folder / kind`; all in it vanishes when the block raises.

    What a killed process left there is removed by whoever publishes a day later.
    """
    name = f"{kind}/{uuid.uuid4().hex}"
    try:
        yield name
    except BaseException:
        with contextlib.suppress(OSError):
            _remove_folder(folder / name)
        for empty in (folder / kind, folder):  # a request that was refused leaves no folders behind, either
            if empty.local is not None:
                with contextlib.suppress(OSError):  # an older result is in it
                    empty.local.rmdir()
        raise


def whole(name: str, parts: Sequence[Content]) -> Content:
    """Parts as one: their sizes' sum, and SHA-256 over their own."""
    digest = hashlib.sha256(b"".join(bytes.fromhex(part.sha256) for part in parts))
    return Content(name, sum(part.size for part in parts), digest.hexdigest())


def publish_input(folder: Location, origin: Origin, rows: int, parts: Sequence[Content]) -> Content:
    """Make these parts the request's joined rows.

    Raises:
        StorageError: that can't be written; the earlier ones are still named.
    """
    content = whole(INPUT_PARTS, parts)
    with publishing(folder / PARTED_INPUT) as part:
        part.write_bytes(_json(PartedInput(content, origin, rows, tuple(parts))))
    remove_file(folder / INPUT)
    _forget_replaced(folder, INPUT_PARTS, parts)
    return content


def publish_output(folder: Location, manifest: Manifest) -> None:
    """Make the manifest's parts the request's scored rows.

    Raises:
        StorageError: that can't be written; the earlier ones are still named.
    """
    with publishing(folder / MANIFEST_NAME) as part:
        part.write_bytes(_json(manifest))
    remove_file(folder / OUTPUT_NAME)
    _forget_replaced(folder, OUTPUT_PARTS, manifest.parts)


def read_parted_input(folder: Location) -> PartedInput:
    """The joined rows of a request.

    Raises:
        BatchRequestError: there are none, or the file that names them can't be read.
        StorageError: they can't be reached.
    """
    file = folder / PARTED_INPUT
    try:
        return msgspec.json.decode(file.read_bytes(), type=PartedInput)
    except FileNotFoundError:
        raise BatchRequestError(str(file), "there is no such file: materialize batch_input first.") from None
    except msgspec.MsgspecError as error:
        raise BatchRequestError(str(file), f"it can't be read ({error}): materialize batch_input again.") from None


def remove_file(file: Location) -> None:
    """Remove a file if there is one.

    Raises:
        StorageError: that can't be done.
    """
    try:
        if file.exists():
            filesystem, path = file.filesystem()
            filesystem.delete_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError("removing", str(file), error) from error


def _forget_replaced(folder: Location, kind: str, current: Sequence[Content]) -> None:
    """Remove the generations of a kind that nobody wrote to for a day, but for the current."""
    from pyarrow.fs import FileSelector

    named = {part.name.split("/")[1] for part in current}
    with contextlib.suppress(OSError):  # they are in nobody's way; the next one tries again
        filesystem, path = (folder / kind).filesystem()
        # In S3 a folder has no age of its own.
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


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"
