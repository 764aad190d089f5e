"""Where requests and results are kept: a folder on this machine, or a prefix of an S3 bucket.

S3 goes through pyarrow, which finds credentials and region as every AWS tool does: AWS_ACCESS_KEY_ID and its like,
AWS_REGION, ~/.aws, the machine's own role. AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names another server than Amazon's.
"""

import contextlib
import functools
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scoring.errors import StorageError

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem, S3FileSystem

ALLOWED = "a folder, file:///folder or s3://bucket/prefix"
# Both are tried three times. The second is how long a server may send nothing at all.
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5, 10


class Entry(msgspec.Struct, frozen=True):
    """A file as a listing shows it."""

    name: str
    size: int
    """Bytes."""
    modified_ns: int
    """When it was last written, in nanoseconds since 1970; in S3 to the second."""


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
        return s3(), str(self._bucket_path)

    def files(self) -> list[Entry]:
        """The files that lie directly in this folder, in no order. A prefix that no object bears has none.

        Raises:
            FileNotFoundError: there is no such folder on this machine.
            StorageError: it can't be listed.
        """
        with telling("listing", self):
            if self._path is not None:
                return list(_scan(self._path))
            from pyarrow.fs import FileSelector

            try:
                found = s3().get_file_info(FileSelector(self._bucket_path))
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
        with telling("opening", self):
            if self._path is not None:
                from pyarrow import OSFile

                return OSFile(str(self._path))
            return s3().open_input_file(self._bucket_path)

    def read_bytes(self) -> bytes:
        """All bytes of a small file.

        Raises:
            FileNotFoundError, StorageError: as `open`.
        """
        with self.open() as file, telling("reading", self):
            return bytes(file.read())

    def exists(self) -> bool:
        """Whether there is such a file.

        Raises:
            StorageError: that can't be told.
        """
        with telling("looking for", self):
            if self._path is not None:
                return self._path.is_file()
            return bool(s3().get_file_info(self._bucket_path).is_file)

    def stamp(self) -> str:
        """What changes whenever the file is replaced or written to: S3's ETag, or inode, size and time on a disk.

        Raises:
            FileNotFoundError, StorageError: as `open`.
        """
        with telling("looking at", self):
            if self._path is not None:
                found = self._path.stat()
                return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
            with s3().open_input_file(self._bucket_path) as file:
                return str(file.metadata()["ETag"], "ascii")


def _scan(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed since the listing began, or a link that leads nowhere
                if entry.is_file():
                    found = entry.stat()
                    yield Entry(entry.name, found.st_size, found.st_mtime_ns)


def s3() -> "S3FileSystem":
    """S3 as the environment says, connected to when it is used."""
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
def telling(doing: str, place: Location) -> Iterator[None]:
    """OSErrors within the block, but for a file that is not there, become a StorageError that names the place."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(doing, str(place), error) from error
