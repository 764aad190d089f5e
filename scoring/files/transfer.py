"""Files between this machine and their location: one state of them, whole or not at all, hashed on the way."""

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
from scoring.files.location import Location, s3, storage_errors

if TYPE_CHECKING:
    from pyarrow import NativeFile

ATTEMPTS = 10
CHUNK_BYTES = 1 << 24  # in S3, each is a request of its own
HASHED_BYTES, HASHED_EVERY_S = 1 << 20, 0.02
TICK_NS = 20_000_000  # twice the longest tick of Linux


class Content(msgspec.Struct, frozen=True):
    """Which bytes a file holds."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Of all bytes, hex."""


def fetch(source: Location, destination: Path) -> Content:
    """Copy one state of a file to this machine, even if another process replaces the file meanwhile.

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
    """A stamp that the next write will change: the clock of a disk ticks, and two writes may share a tick."""
    stamp = source.stamp()
    if source.local is not None and 0 <= time.time_ns() - source.local.stat().st_mtime_ns < TICK_NS:
        time.sleep(TICK_NS / 1e9)
        stamp = source.stamp()
    return stamp


class Held(msgspec.Struct, frozen=True):
    """One state of a file, held open for reading."""

    file: "NativeFile | Path"
    """What `ParquetFile` takes."""
    content: Callable[[], Content]
    """Which bytes they are; waits until all of them were hashed. Raises StillWritten if the file was written to."""


@contextlib.contextmanager
def holding(source: Location, copy: Path) -> Iterator[Held]:
    """Hold one state of a file, even if another process replaces the file meanwhile.

    A file on this machine is read in place, and hashed by a thread. One in S3 is copied to `copy` first.

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
    """An empty file on this machine to write to, which replaces `destination` when the block ends.

    An older file stays as it was if the block raises, or the process is killed at any time.

    Raises:
        StorageError: it can't be written, here or there (a full disk, an object store that is down).
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

    # In one call: pyarrow 25 completes an upload when its stream is closed, even by an exception, so that an
    # interrupted loop of writes would publish what it had written.
    path = str(destination).removeprefix("s3://")
    copy_files(str(file), path, source_filesystem=LocalFileSystem(), destination_filesystem=s3())


@contextlib.contextmanager
def hashing(file: Path) -> Iterator[Callable[[str], Content]]:
    """Hash a file while the block writes it from start to end.

    Yields a function that gives the file's content under the name that it has for others. Call it when the file is
    complete.
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
    """Size and hash of a file on this machine, under the name that it has for others."""
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
        return Content(name, opened.tell(), digest.hexdigest())
