"""`python -m tests.e2e.s3_on_disk HOST PORT FOLDER`: moto's S3 server, which keeps what it holds when it stops.

Each folder in FOLDER is a bucket, as in the gateway that docker-compose.yml runs.
"""

import atexit
import pickle
import sys
from pathlib import Path

import moto.server
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends

KEPT = "moto.pickle"


def main(host: str, port: str, folder: Path) -> None:
    """Serve until SIGTERM."""
    backend, kept = s3_backends[DEFAULT_ACCOUNT_ID]["aws"], folder / KEPT
    if kept.exists():
        backend.buckets.update(pickle.loads(kept.read_bytes()))  # noqa: S301 - written below
    for place in folder.iterdir():
        if place.is_dir() and place.name not in backend.buckets:
            backend.create_bucket(place.name, "us-east-1")
    atexit.register(lambda: kept.write_bytes(pickle.dumps(dict(backend.buckets))))
    moto.server.main(["-H", host, "-p", port])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
