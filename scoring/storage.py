"""Where requests and results are kept: a folder on this machine, or a prefix of an S3 bucket. Read and published whole.

S3 goes through pyarrow, which finds credentials and region as every AWS tool does: AWS_ACCESS_KEY_ID and its like,
AWS_REGION, ~/.aws, the machine's own role. AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names another server than Amazon's.
"""

import contextlib
import functools
import hashlib
import os
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scoring.errors import StillWritten, StorageError
from scoring.files import scratch_folder, whole_file

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem, S3FileSystem

ALLOWED = "a folder, file:///folder or s3://bucket/prefix"
# Both are tried three times. The second is how long a server may send nothing at all.
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5, 10
FETCH_TRIES = 10
CHUNK_BYTES = 1 << 24  # each is a request of its own in S3


class Entry(msgspec.Struct, frozen=True):
    """A file as a listing shows it."""

    name: str
    size: int
    """Bytes."""
    modified_ns: int
    """When it was last written, in nanoseconds since 1970; in S3 to the second."""


class Content(msgspec.Struct, frozen=True):
    """Which bytes a file holds."""

    name: str
    size: int
    """Bytes."""
    sha256: str
    """Of all bytes, hex."""


class Location:
    """A file or folder, on this machine or in S3. `location / "name"` is what lies below it. Making one opens nothing.

    Raises:
        ValueError: the text names no such place.
    """

    __slots__ = ("_bucket_path", "_path")

    def __init__(self, text: str | Path) -> None:
        self._path: Path | None = None
        self._bucket_path: str | None = None
        scheme, separator, rest = str(text).partition("://")
        if not separator:
            self._path = Path(text)
        elif scheme == "file" and rest.startswith("/"):
            self._path = Path(urllib.parse.unquote(rest))
        elif scheme == "s3" and rest.strip("/") and not rest.startswith("/"):
            if "@" in rest.partition("/")[0] or "?" in rest:
                raise ValueError(
                    "credentials, region and endpoint belong into the AWS_ variables, not into the address"
                )
            self._bucket_path = rest.rstrip("/")
        else:
            raise ValueError("no such kind of place")

    @property
    def local(self) -> Path | None:
        """The path on this machine; None in S3."""
        return self._path

    @property
    def name(self) -> str:
        """The last part."""
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The folder that it lies in."""
        return Location(self._path.parent) if self._path is not None else Location(str(self).rpartition("/")[0])

    def __truediv__(self, name: str) -> "Location":
        return Location(self._path / name) if self._path is not None else Location(f"{self}/{name}")

    def __str__(self) -> str:
        return str(self._path) if self._path is not None else f"s3://{self._bucket_path}"

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Location) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def filesystem(self) -> tuple["FileSystem", str]:
        """pyarrow's file system and the path in it. What it raises is its own."""
        if self._path is not None:
            from pyarrow.fs import LocalFileSystem

            return LocalFileSystem(), str(self._path.absolute())
        return _s3(), str(self._bucket_path)

    def files(self) -> list[Entry]:
        """The files that lie directly in this folder, in no order. A prefix that no object bears has none.

        Raises:
            FileNotFoundError: there is no such folder on this machine.
            StorageError: it can't be listed.
        """
        with _telling("listing", self):
            if self._path is not None:
                return list(_scan(self._path))
            from pyarrow.fs import FileSelector

            try:
                found = _s3().get_file_info(FileSelector(self._bucket_path))
            except FileNotFoundError:  # a bucket that is not there is another error
                return []
            return [Entry(each.base_name, each.size, each.mtime_ns) for each in found if each.is_file]

    def open(self) -> "NativeFile":
        """The file, to read from any place in it; what `ParquetFile` takes. Close it.

        In S3 each read is a request of its own: where another process may replace the file meanwhile, `fetch` it.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it can't be opened. Reads after that raise OSError.
        """
        with _telling("opening", self):
            if self._path is not None:
                from pyarrow import OSFile

                return OSFile(str(self._path))
            return _s3().open_input_file(self._bucket_path)

    def read_bytes(self) -> bytes:
        """All bytes of a small file.

        Raises:
            FileNotFoundError, StorageError: as `open`.
        """
        with self.open() as file, _telling("reading", self):
            return bytes(file.read())

    def exists(self) -> bool:
        """Whether there is such a file.

        Raises:
            StorageError: that can't be told.
        """
        with _telling("looking for", self):
            if self._path is not None:
                return self._path.is_file()
            return bool(_s3().get_file_info(self._bucket_path).is_file)

    def stamp(self) -> str:
        """What changes whenever the file is replaced or written to: S3's ETag, or inode, size and time on a disk.

        Raises:
            FileNotFoundError, StorageError: as `open`.
        """
        with _telling("looking at", self):
            if self._path is not None:
                found = self._path.stat()
                return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
            with _s3().open_input_file(self._bucket_path) as file:
                return str(file.metadata()["ETag"], "ascii")


def fetch(source: Location, destination: Path) -> Content:
    """Copy a file to this machine: one state of it, also where another process replaces it meanwhile.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it can't be read or copied; StillWritten if it kept changing.
    """
    for _ in range(FETCH_TRIES):
        before = source.stamp()
        digest = hashlib.sha256()
        size = 0
        with source.open() as file, _telling("copying", source), destination.open("wb") as copy:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += copy.write(chunk)
        if source.stamp() == before:
            return Content(source.name, size, digest.hexdigest())
    raise StillWritten(str(source))


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
            before = source.stamp()
            file = stack.enter_context(source.open())
            with _telling("opening", source):
                own = stack.enter_context(source.local.open("rb"))
            if source.stamp() == before:
                break
        else:
            raise StillWritten(str(source))
        thread = stack.enter_context(ThreadPoolExecutor(1, "hash"))
        state = os.fstat(own.fileno())
        digest = thread.submit(hashlib.file_digest, own, "sha256")

        def content_of_held() -> Content:
            with _telling("reading", source):
                sha256, now = digest.result().hexdigest(), os.fstat(own.fileno())
            if (now.st_size, now.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
                raise StillWritten(str(source))
            return Content(source.name, now.st_size, sha256)

        yield Held(file, content_of_held)


@contextlib.contextmanager
def publishing(destination: Location) -> Iterator[Path]:
    """A path on this machine to write to; when the block ends well, it becomes `destination`, whole.

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
            yield part
            _upload(part, destination)
    except OSError as error:
        raise StorageError("writing", str(destination), error) from error


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
    copy_files(str(file), path, source_filesystem=LocalFileSystem(), destination_filesystem=_s3())


def _scan(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed since the listing began, or a link that leads nowhere
                if entry.is_file():
                    found = entry.stat()
                    yield Entry(entry.name, found.st_size, found.st_mtime_ns)


def _s3() -> "S3FileSystem":
    # pyarrow reads the endpoint from the environment only where it is given a URI (pyarrow 25).
    return _s3_at(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None)


@functools.cache
def _s3_at(endpoint: str | None) -> "S3FileSystem":
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(
        endpoint_override=endpoint,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        background_writes=False,  # else parts of the file wait in memory, all of them if the network is slow
    )


@contextlib.contextmanager
def _telling(doing: str, place: Location) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(doing, str(place), error) from error
