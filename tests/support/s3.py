"""Buckets and objects of an S3 server."""

from pathlib import Path

from pyarrow.fs import S3FileSystem

from scoring.files.location import Location
from scoring.files.transfer import publishing
from tests.support.servers import S3Server


def make_bucket(server: S3Server, name: str) -> None:
    S3FileSystem(endpoint_override=server.endpoint_url, allow_bucket_creation=True).create_dir(name)


def put(file: Path, place: Location) -> Location:
    with publishing(place) as part:
        part.write_bytes(file.read_bytes())
    return place
