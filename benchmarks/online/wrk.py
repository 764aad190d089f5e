"""Load from wrk, an HTTP load generator in C: it uses little of the CPU that the servers need."""

import shutil
import subprocess
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).with_name("ids.lua")


class WrkMissing(RuntimeError):
    """wrk is not on PATH."""

    def __init__(self) -> None:
        super().__init__(
            "the load generator wrk is not on PATH: apt-get install wrk (Debian, Ubuntu) or brew install wrk."
        )


class Load(msgspec.Struct, frozen=True):
    """The results of one wrk run."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    """Responses with a status other than 2xx or 3xx."""
    broken: int
    """Requests without a response."""


def run_wrk(url: str, template: str, ids: int, known: range, connections: int, seconds: float, seed: int) -> Load:
    """Keep `connections` busy for some seconds. Each connection sends its next request after a response.

    Args:
        url: the URL to POST to.
        template: the body, with IDS in place of the comma-separated ids.
        ids: number of different ids per request.
        known: the range that ids are drawn from.
        connections: number of open connections.
        seconds: duration, rounded to full seconds for wrk.
        seed: the same seed gives the same ids in the same order.

    Raises:
        WrkMissing: wrk is not on PATH.
        subprocess.CalledProcessError: wrk failed; see its output.
    """

    program = shutil.which("wrk")
    if program is None:
        raise WrkMissing
    arguments = [template, str(ids), str(known.start), str(known.stop - 1), str(seed)]
    command = [program, "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "10s", "-s", str(SCRIPT), url]
    output = subprocess.run([*command, "--", *arguments], check=True, capture_output=True, text=True).stdout
    line = next(each for each in output.splitlines() if each.startswith("RESULT "))
    return msgspec.json.decode(line.removeprefix("RESULT "), type=Load)
