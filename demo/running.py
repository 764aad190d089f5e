"""The ports of the running demo, for `make demo-promote`: they are in var/running.json while the demo is up."""

import contextlib
from collections.abc import Iterator

import msgspec

from cli.processes import CannotStart
from demo.environment import STATE
from scoring.files.atomic import whole_file

FILE = STATE / "running.json"


class Ports(msgspec.Struct, frozen=True):
    """The ports of the demo's servers on 127.0.0.1."""

    dagit: int
    api: int


@contextlib.contextmanager
def announced(ports: Ports) -> Iterator[None]:
    """Publish the ports until the block ends."""
    with whole_file(FILE) as part:
        part.write_bytes(msgspec.json.encode(ports))
    try:
        yield
    finally:
        FILE.unlink(missing_ok=True)


def read_ports() -> Ports:
    """Return the ports of the running demo, or of one that was killed.

    Raises:
        NotUp: no demo is running.
    """
    try:
        return msgspec.json.decode(FILE.read_bytes(), type=Ports)
    except (OSError, msgspec.MsgspecError):
        raise NotUp() from None


class NotUp(CannotStart):
    """No demo is up in this folder."""

    def __init__(self) -> None:
        super().__init__("the demo is not up: run `make demo` in another terminal, and wait until it prints addresses.")
