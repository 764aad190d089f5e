"""An environment for each peer, from the hashed requirements beside its code; and which versions are really in it.

We run in two of our own, too: what the images of the API and of batch are made of, without the tools of development.

Beside our own packages a peer would silently resolve to an old version of itself, or of Feast: see `check_versions`.
"""

import hashlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.place import PEERS, ROOT, VAR

# The peer itself, and what must be in the same version as ours for the work to be the same.
DISTRIBUTION = {"bentoml": "bentoml", "fastapi": "fastapi", "mlserver": "mlserver"}
SHARED = ("feast", "scikit-learn", "pandas", "numpy", "redis", "hiredis")
_SHOW = "import sys,json;from importlib.metadata import version as v;print(json.dumps({n:v(n) for n in sys.argv[1:]}))"


class WrongVersion(RuntimeError):
    """A peer's environment holds another version than the comparison is about."""

    def __init__(self, peer: str, package: str, found: str, expected: str) -> None:
        super().__init__(
            f"the environment of {peer} has {package} {found}, and {expected} is to be compared: "
            f"make lock, and remove {folder_of(peer)}."
        )


OURS, OURS_BATCH = "ours", "ours-batch"
OUR_REQUIREMENTS = {OURS: "api.txt", OURS_BATCH: "batch.txt"}


def requirements_of(peer: str) -> Path:
    """What the peer's environment is made of."""
    own = OUR_REQUIREMENTS.get(peer)
    return ROOT / "requirements" / own if own else PEERS / peer / "requirements.txt"


def folder_of(peer: str) -> Path:
    """The peer's environment."""
    return VAR / "peers" / peer


def python_of(peer: str) -> Path:
    """The interpreter of the peer's environment."""
    return folder_of(peer) / "bin" / "python"


def build(peer: str) -> None:
    """Make or renew the environment, unless it is what the requirements say; compiled, as ours is."""
    requirements = requirements_of(peer)
    stamp, wanted = folder_of(peer) / ".requirements", hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"Building the environment of {peer} in {folder_of(peer)} (once) ...", file=sys.stderr, flush=True)
    # sync installs what the file lists and resolves nothing: MLServer and Feast contradict each other.
    install = ["sync", "--quiet", "--require-hashes", "--compile-bytecode", "--python", str(python_of(peer))]
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder_of(peer)))
    _uv("pip", *install, str(requirements))
    stamp.write_text(wanted)


def check_versions(peer: str) -> dict[str, str]:
    """Package → version, of the peer and of what it shares with us.

    Raises:
        WrongVersion: the peer is not what its requirements say, or something shared is not what we have.
    """
    own = DISTRIBUTION[peer]
    command = [str(python_of(peer)), "-c", _SHOW, own, *SHARED]
    found: dict[str, str] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    expected = {name: metadata.version(name) for name in SHARED} | {own: _pinned(peer, own)}
    for name, version in found.items():
        if version != expected[name]:
            raise WrongVersion(peer, name, version, expected[name])
    return found


def _pinned(peer: str, package: str) -> str:
    text = (PEERS / peer / "requirements.txt").read_text()
    match = re.search(rf"^{package}==(\S+)", text, re.MULTILINE)
    if match is None:
        raise WrongVersion(peer, package, "no version", "a pinned one")
    return match.group(1)


def _uv(*arguments: str) -> None:
    subprocess.run([str(ROOT / ".venv" / "bin" / "uv"), *arguments], check=True, cwd=ROOT)
