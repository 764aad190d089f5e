"""Consistent, hashed copies between this machine and storage."""

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scoring.errors import StillWritten, StorageError
from scoring.files.atomic import scratch_folder, whole_file
from scoring.files.location import ATTEMPTS, Location, s3, storage_errors

if TYPE_CHECKING:
    from pyarrow import NativeFile

CHUNK_BYTES = 1 << 24  # in S3, each chunk is a separate request
HASHED_BYTES, HASHED_EVERY_S = 1 << 20, 0.02
TICK_NS = 20_000_000  # twice the longest tick of Linux


class Content(msgspec.Struct, frozen=True):
    """Identity of a file's content."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Hex digest of the content."""


def fetch(source: Location, destination: Path) -> Content:
    """Copy a consistent snapshot of a file to this machine, even if another process replaces the file meanwhile.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it can't be read or copied; StillWritten if it kept changing.
    """
    for _ in range(ATTEMPTS):
        before = _settled_stamp(source)
        digest = hashlib.sha256()
        size = 0
        with source.open() as file, storage_errors("copying", source):
            try:
                with destination.open("wb") as copy:
                    while chunk := file.read(CHUNK_BYTES):
                        digest.update(chunk)
                        size += copy.write(chunk)
            except OSError as error:
                if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                    raise OSError(error.errno, f"{error.strerror} in {destination.parent} (TMPDIR)") from error
                raise
        if source.stamp() == before:
            return Content(source.name, size, digest.hexdigest())
    raise StillWritten(str(source))


def _settled_stamp(source: Location) -> str:
    """Return a stamp that the next write will change.

    File-system clocks are coarse, so that two writes may have the same time.
    """
    stamp = source.stamp()
    if source.local is not None and 0 <= time.time_ns() - source.local.stat().st_mtime_ns < TICK_NS:
        time.sleep(TICK_NS / 1e9)
        stamp = source.stamp()
    return stamp


class Held(msgspec.Struct, frozen=True):
    """A consistent snapshot of a file, held open for reading."""

    file: "NativeFile | Path"
    """The argument for `ParquetFile`."""
    content: Callable[[], Content]
    """Returns the identity of the content once all bytes are hashed. Raises StillWritten if the file was written to."""


@contextlib.contextmanager
def holding(source: Location, copy: Path) -> Iterator[Held]:
    """Hold a consistent snapshot of a file, even if another process replaces the file meanwhile.

    A file on this machine is read in place, and hashed by a thread. A file in S3 is first copied to `copy`.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it can't be read; StillWritten if it kept changing.
    """
    if source.local is None:
        content = fetch(source, copy)
        yield Held(copy, lambda: content)
        return
    with contextlib.ExitStack() as stack:
        for _ in range(ATTEMPTS):
            before = _settled_stamp(source)
            file = stack.enter_context(source.open())
            with storage_errors("opening", source):
                own = stack.enter_context(source.local.open("rb"))
            if source.stamp() == before:
                break
        else:
            raise StillWritten(str(source))
        thread = stack.enter_context(ThreadPoolExecutor(1, "hash"))
        state = os.fstat(own.fileno())
        digest = thread.submit(hashlib.file_digest, own, "sha256")

        def content_of_held() -> Content:
            with storage_errors("reading", source):
                sha256, now = digest.result().hexdigest(), os.fstat(own.fileno())
            if (now.st_size, now.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
                raise StillWritten(str(source))
            return Content(source.name, now.st_size, sha256)

        yield Held(file, content_of_held)


@contextlib.contextmanager
def publishing(destination: Location) -> Iterator[Path]:
    """Provide an empty local file that replaces `destination` when the block ends.

    An older file is unchanged if the block raises, or if the process is killed at any time.

    Raises:
        StorageError: it can't be written, locally or remotely (a full disk, an object store that is down).
    """
    try:
        if destination.local is not None:
            with whole_file(destination.local) as part:
                yield part
            return
        with scratch_folder() as scratch:
            part = scratch / destination.name
            part.touch()
            yield part
            _upload(part, destination)
    except OSError as error:
        raise StorageError("writing", str(destination), error) from error


def _upload(file: Path, destination: Location) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    # Upload in one call. pyarrow 25 completes an upload when its stream is closed, even by an exception, so that an
    # interrupted loop of writes would publish an incomplete file.
    path = str(destination).removeprefix("s3://")
    copy_files(str(file), path, source_filesystem=LocalFileSystem(), destination_filesystem=s3())


@contextlib.contextmanager
def hashing(file: Path) -> Iterator[Callable[[str], Content]]:
    """Hash a file while the block writes it from start to end.

    Yields a function that returns the file's content under its published name. Call it when the file is complete.
    """
    whole = threading.Event()
    with ThreadPoolExecutor(1, "hash") as thread:
        digest = thread.submit(_digest_as_it_grows, file, whole)

        def content(name: str) -> Content:
            whole.set()
            size, sha256 = digest.result()
            return Content(name, size, sha256)

        try:
            yield content
        finally:
            whole.set()


def _digest_as_it_grows(file: Path, whole: threading.Event) -> tuple[int, str]:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(HASHED_BYTES))
    with file.open("rb", buffering=0) as opened:
        last = False
        while not last:
            last = whole.wait(HASHED_EVERY_S)
            while count := opened.readinto(buffer):
                digest.update(buffer[:count])
        return opened.tell(), digest.hexdigest()


def content_of(file: Path, name: str) -> Content:
    """Return the size and hash of a file on this machine, under its published name."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
        return Content(name, opened.tell(), digest.hexdigest())


def remove_file(file: Location) -> None:
    """Remove a file if it exists.

    Raises:
        StorageError: it can't be removed.
    """
    try:
        if file.exists():
            filesystem, path = file.filesystem()
            filesystem.delete_file(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError("removing", str(file), error) from error
