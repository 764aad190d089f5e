"""Files go from and to where they are kept whole or not at all."""

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
from scoring.files.location import Location, s3, telling

if TYPE_CHECKING:
    from pyarrow import NativeFile

FETCH_TRIES = 10
CHUNK_BYTES = 1 << 24  # each is a request of its own in S3
HASHED_BYTES, HASHED_EVERY_S = 1 << 20, 0.02
TICK_NS = 20_000_000  # two of the longest that Linux has


class Content(msgspec.Struct, frozen=True):
    """Which bytes a file holds."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Of all bytes, hex."""


def fetch(source: Location, destination: Path) -> Content:
    """Copy a file to this machine: one state of it, also where another process replaces it meanwhile.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it can't be read or copied; StillWritten if it kept changing.
    """
    for _ in range(FETCH_TRIES):
        before = _stamp_at_rest(source)
        digest = hashlib.sha256()
        size = 0
        with source.open() as file, telling("copying", source):
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


def _stamp_at_rest(source: Location) -> str:
    """The stamp, once the next write would change it: a disk tells times in ticks, and two writes may share one."""
    stamp = source.stamp()
    if source.local is not None and 0 <= time.time_ns() - source.local.stat().st_mtime_ns < TICK_NS:
        time.sleep(TICK_NS / 1e9)
        stamp = source.stamp()
    return stamp


class Held(msgspec.Struct, frozen=True):
    """One state of a file that is being read, also where another process replaces it meanwhile."""

    file: "NativeFile | Path"
    """What `ParquetFile` takes."""
    content: Callable[[], Content]
    """Which bytes they are; waits until all of them were read once.

    Raises StillWritten where somebody has written into the file since."""


@contextlib.contextmanager
def holding(source: Location, copy: Path) -> Iterator[Held]:
    """A file to read. On this machine it is read in place, and hashed meanwhile; from S3 it is copied to `copy` first.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it can't be read; StillWritten if it kept changing.
    """
    if source.local is None:
        content = fetch(source, copy)
        yield Held(copy, lambda: content)
        return
    with contextlib.ExitStack() as stack:
        for _ in range(FETCH_TRIES):
            before = _stamp_at_rest(source)
            file = stack.enter_context(source.open())
            with telling("opening", source):
                own = stack.enter_context(source.local.open("rb"))
            if source.stamp() == before:
                break
        else:
            raise StillWritten(str(source))
        thread = stack.enter_context(ThreadPoolExecutor(1, "hash"))
        state = os.fstat(own.fileno())
        digest = thread.submit(hashlib.file_digest, own, "sha256")

        def content_of_held() -> Content:
            with telling("reading", source):
                sha256, now = digest.result().hexdigest(), os.fstat(own.fileno())
            if (now.st_size, now.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
                raise StillWritten(str(source))
            return Content(source.name, now.st_size, sha256)

        yield Held(file, content_of_held)


@contextlib.contextmanager
def publishing(destination: Location) -> Iterator[Path]:
    """An empty file on this machine to write to; when the block ends well, it becomes `destination`, whole.

    When the block raises, or the process is killed at any moment, an older file stays as it was.

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


@contextlib.contextmanager
def hashing(file: Path) -> Iterator[Callable[[str], Content]]:
    """Hash a file while the block writes it, from its start to its end and no byte twice.

    Yields what gives `content_of` the file, which must be whole when that is asked for.
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


def _upload(file: Path, destination: Location) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    # In one call: pyarrow completes an upload whose stream is closed, also where an exception closed it, so that a
    # loop of writes that is interrupted would publish what it wrote so far (pyarrow 25).
    path = str(destination).removeprefix("s3://")
    copy_files(str(file), path, source_filesystem=LocalFileSystem(), destination_filesystem=s3())
