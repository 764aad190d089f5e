"""Storage locations of requests and results: a local folder, or a prefix in an S3 bucket.

pyarrow accesses S3, and finds credentials and region like other AWS tools: in AWS_ACCESS_KEY_ID and related variables,
AWS_REGION, ~/.aws, or the machine's role. AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL names a server other than Amazon's.
"""

import contextlib
import functools
import os
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from scoring.errors import StillWritten, StorageError

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem, S3FileSystem

ATTEMPTS = 10  # to read a file that other processes keep replacing
ALLOWED = "a folder, file:///folder or s3://bucket/prefix"
# pyarrow tries three times. REQUEST_TIMEOUT_S limits the time without data.
CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S = 5, 10


class Entry(msgspec.Struct, frozen=True):
    """A file in a listing."""

    name: str
    size: int
    """Bytes."""
    modified_ns: int
    """When it was last written, in nanoseconds since 1970; S3 gives whole seconds."""


class Location:
    """A file or folder, on this machine or in S3. `location / "name"` is below it. Creating a location opens nothing.

    Raises:
        ValueError: the string is not a valid location.
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
                raise ValueError("set credentials, region and endpoint in the AWS_ variables, not in the address")
            self._bucket_path = rest.rstrip("/")
        else:
            raise ValueError("its scheme is not supported, or it has no path")

    @property
    def local(self) -> Path | None:
        """Return the path on this machine; None in S3."""
        return self._path

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return str(self).rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """Return the folder that contains it."""
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
        """Return pyarrow's file system, which raises pyarrow's own errors, and the path in it."""
        if self._path is not None:
            from pyarrow.fs import LocalFileSystem

            return LocalFileSystem(), str(self._path.absolute())
        return s3(), str(self._bucket_path)

    def files(self) -> list[Entry]:
        """Return the files directly in this folder, in any order. A prefix without objects has none.

        Raises:
            FileNotFoundError: there is no such folder on this machine.
            StorageError: it can't be listed.
        """
        with storage_errors("listing", self):
            if self._path is not None:
                return list(_scan(self._path))
            from pyarrow.fs import FileSelector

            try:
                found = s3().get_file_info(FileSelector(self._bucket_path))
            except FileNotFoundError:  # a missing bucket is another error
                return []
            return [Entry(each.base_name, each.size, each.mtime_ns) for each in found if each.is_file]

    def open(self) -> "NativeFile":
        """Open the file for random reads, as `ParquetFile` needs them. The caller must close it.

        In S3, each read is a separate request: use `fetch` for a file that another process may replace meanwhile.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it can't be opened. Later reads raise OSError.
        """
        with storage_errors("opening", self):
            if self._path is not None:
                from pyarrow import OSFile

                return OSFile(str(self._path))
            return s3().open_input_file(self._bucket_path)

    def read_bytes(self, most: int | None = None) -> bytes:
        """Return all bytes of a small file, those of one version even if another process replaces the file meanwhile.

        Of a file with more bytes than `most`, return only that many.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: it can't be read; StillWritten if it kept changing.
        """
        for _ in range(ATTEMPTS):
            with self.open() as file, storage_errors("reading", self):
                content = bytes(file.read(most))
                # In S3, opening asks for the size, and reading asks for as many bytes of what is there by then.
                if self._path is not None or str(file.metadata()["ETag"], "ascii") == self.stamp():
                    return content
        raise StillWritten(str(self))

    def exists(self) -> bool:
        """Return whether the file exists. Raises StorageError if the store does not respond."""
        with storage_errors("looking for", self):
            if self._path is not None:
                return self._path.is_file()
            return bool(s3().get_file_info(self._bucket_path).is_file)

    def stamp(self) -> str:
        """Return a token that changes with every write: the ETag in S3; inode, size and time on a disk.

        Raises like `open`.
        """
        with storage_errors("looking at", self):
            if self._path is not None:
                found = self._path.stat()
                return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"
            with s3().open_input_file(self._bucket_path) as file:
                return str(file.metadata()["ETag"], "ascii")


def _scan(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # removed since the listing began, or a dangling link
                if entry.is_file():
                    found = entry.stat()
                    yield Entry(entry.name, found.st_size, found.st_mtime_ns)


def s3() -> "S3FileSystem":
    """Return the S3 file system that the environment configures. It connects lazily."""
    # pyarrow 25 reads the endpoint from the environment only if it gets a URI.
    return _s3_at(_endpoint())


def delta_options(place: Location) -> dict[str, str]:
    """Return deltalake's options for a table at this location. It finds credentials and region as other AWS tools."""
    return delta_server(_endpoint() or "") if place.local is None else {}


def delta_server(endpoint: str) -> dict[str, str]:
    """Return deltalake's options for tables on this S3 server; "" is Amazon's."""
    allow_http = str(endpoint.startswith("http://")).lower()
    return {"aws_endpoint_url": endpoint, "aws_allow_http": allow_http} if endpoint else {}


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@functools.cache
def _s3_at(endpoint: str | None) -> "S3FileSystem":
    from pyarrow.fs import S3FileSystem

    return S3FileSystem(
        endpoint_override=endpoint,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=REQUEST_TIMEOUT_S,
        background_writes=False,  # otherwise parts are buffered in memory: all of them on a slow network
    )


@contextlib.contextmanager
def storage_errors(doing: str, place: Location) -> Iterator[None]:
    """Raise a StorageError that names the place for any OSError in the block, except FileNotFoundError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(doing, str(place), error) from error
