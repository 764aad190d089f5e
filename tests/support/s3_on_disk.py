"""`python s3_on_disk.py HOST PORT FOLDER`: moto's S3 server, which stores objects as plain files.

Each folder in FOLDER is a bucket, and each file in it an object, as in the gateway that docker-compose.yml runs. Any
credentials are accepted.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import FakeKey, s3_backends
from werkzeug.serving import run_simple

BACKEND = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]


class OnDisk:
    """The server as a WSGI application. The files are up to date before a response is sent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = DomainDispatcherApplication(create_backend_app)
        self.written: dict[Path, FakeKey] = {}
        self.lock = threading.Lock()
        for bucket in folder.iterdir():
            if bucket.is_dir():
                self.read(bucket)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answer = list(self.server(environ, start_response))
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            with self.lock:
                self.write()
        return answer

    def read(self, bucket: Path) -> None:
        BACKEND.create_bucket(bucket.name, "us-east-1")
        for file in bucket.rglob("*"):
            if file.is_file():
                key = str(file.relative_to(bucket))
                self.written[file] = BACKEND.put_object(bucket.name, key, file.read_bytes())

    def write(self) -> None:
        objects = {
            self.folder / bucket.name / name: key
            for bucket in BACKEND.buckets.values()
            for name, key in bucket.keys.items()
            if not name.endswith("/")  # a folder's marker
        }
        for file, key in objects.items():
            if self.written.get(file) is not key:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(key.value)
        for file in self.written.keys() - objects:
            file.unlink(missing_ok=True)
        self.written = objects


def main(host: str, port: int, folder: Path) -> None:
    """Serve until SIGTERM."""
    run_simple(host, port, OnDisk(folder), threaded=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
