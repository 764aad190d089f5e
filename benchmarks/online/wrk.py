"""Load by wrk, an HTTP load generator in C: it takes little of the CPU that the servers need."""

import shutil
import subprocess
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).with_name("ids.lua")


class WrkMissing(RuntimeError):
    """wrk is not on PATH."""

    def __init__(self) -> None:
        super().__init__("the load generator wrk is missing: apt-get install wrk (Debian, Ubuntu) or brew install wrk.")


class Load(msgspec.Struct, frozen=True):
    """What wrk saw in one go."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    """Answers with another status than 2xx or 3xx."""
    broken: int
    """Requests without an answer."""


def ask_for_a_while(
    url: str, template: str, ids: int, known: range, connections: int, seconds: float, seed: int
) -> Load:
    """Keep `connections` busy for some seconds, each asking again once it has its answer.

    Args:
        url: where to POST to.
        template: the body, with IDS where the comma-separated ids go.
        ids: how many different ones a request asks for.
        known: what they are drawn from.
        connections: kept open.
        seconds: how long; wrk takes whole ones.
        seed: the same seed asks for the same ids in the same order.

    Raises:
        WrkMissing: there is no wrk.
        subprocess.CalledProcessError: wrk failed; its output says why.
    """
    program = shutil.which("wrk")
    if program is None:
        raise WrkMissing
    arguments = [template, str(ids), str(known.start), str(known.stop - 1), str(seed)]
    command = [program, "-t1", f"-c{connections}", f"-d{round(seconds)}s", "--timeout", "10s", "-s", str(SCRIPT), url]
    output = subprocess.run([*command, "--", *arguments], check=True, capture_output=True, text=True).stdout
    line = next(each for each in output.splitlines() if each.startswith("RESULT "))
    return msgspec.json.decode(line.removeprefix("RESULT "), type=Load)
