"""The environment variables and commands of the Dockerfile's targets."""

import json
import re
import shlex
from pathlib import Path

DOCKERFILE = Path(__file__).resolve().parents[2] / "Dockerfile"


def environment(target: str) -> dict[str, str]:
    """Return the ENV variables of this target and its base targets."""
    lines = [line for line in _lines(target) if line.startswith("ENV ")]
    pairs = [pair for line in lines for pair in shlex.split(line.removeprefix("ENV "))]
    return dict(pair.split("=", 1) for pair in pairs)


def command(target: str) -> list[str]:
    """Return the command of the image, which runs if docker-compose.yml sets none."""
    last = [line for line in _lines(target) if line.startswith("CMD ")][-1]
    parts: list[str] = json.loads(last.removeprefix("CMD "))
    return parts


def _lines(target: str) -> list[str]:
    """Return the instructions of the target after those of its base, without comments and with continuations joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    of_names = {head.split()[2]: (head.split()[0], body) for head, _, body in (each.partition("\n") for each in stages)}
    base, body = of_names[target]
    inherited = _lines(base) if base in of_names else []
    return inherited + body.splitlines()
