"""Build one environment per peer from the hashed requirements beside its code, and check the installed versions.

model-serving itself also runs in two separate environments, with the packages of the API and batch images and without
development tools.

If installed beside our own packages, a peer would silently resolve to an old version of itself or of Feast: see
`check_versions`.
"""

import hashlib
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.paths import PEERS, ROOT, VAR

OURS, OURS_BATCH = "ours", "ours-batch"
OUR_REQUIREMENTS = {OURS: "api.txt", OURS_BATCH: "batch.txt"}
DISTRIBUTION = {"bentoml": "bentoml", "fastapi": "fastapi", "mlserver": "mlserver", OURS: "mlflow"}
"""Peer → its package. MLflow's own server runs in our environment, which has the package."""
SHARED = ("feast", "scikit-learn", "pandas", "numpy", "redis", "hiredis")
"""Packages that must have the same version as ours, so that all peers do the same work."""
_SHOW = "import sys,json;from importlib.metadata import version as v;print(json.dumps({n:v(n) for n in sys.argv[1:]}))"


class WrongVersion(RuntimeError):
    """A peer's environment has a different version than the one to compare."""

    def __init__(self, peer: str, package: str, found: str, expected: str) -> None:
        super().__init__(
            f"the environment of {peer} has {package} {found} instead of {expected}: "
            f"run make lock and remove {folder_of(peer)}."
        )


MODEL_LIBRARIES = dict.fromkeys((OURS, OURS_BATCH, "bentoml"), ("xgboost", "lightgbm", "onnx"))
"""Environment → the extras that it also has, from the same locks."""


def requirements_of(peer: str) -> list[Path]:
    """Return the requirements files of the peer's environment."""
    own = OUR_REQUIREMENTS.get(peer)
    first = ROOT / "requirements" / own if own else PEERS / peer / "requirements.txt"
    return [first, *(ROOT / "requirements" / f"{extra}.txt" for extra in MODEL_LIBRARIES.get(peer, ()))]


def folder_of(peer: str) -> Path:
    """Return the folder of the peer's environment."""
    return VAR / "peers" / peer


def python_of(peer: str) -> Path:
    """Return the interpreter of the peer's environment."""
    return folder_of(peer) / "bin" / "python"


def build(peer: str) -> None:
    """Build the environment unless it matches the requirements. Bytecode is compiled, as in ours."""
    requirements = requirements_of(peer)
    wanted = hashlib.sha256(b"".join(file.read_bytes() for file in requirements)).hexdigest()
    stamp = folder_of(peer) / ".requirements"
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    print(f"Building the environment of {peer} in {folder_of(peer)} (once) ...", file=sys.stderr, flush=True)
    # sync installs the listed packages without resolving, because MLServer's and Feast's requirements conflict.
    install = ["sync", "--quiet", "--require-hashes", "--compile-bytecode", "--python", str(python_of(peer))]
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder_of(peer)))
    _uv("pip", *install, *map(str, requirements))
    stamp.write_text(wanted)


def check_versions(peer: str) -> dict[str, str]:
    """Return package → version for the peer and the shared packages.

    Raises:
        WrongVersion: the peer does not match its requirements, or a shared package has another version than ours.
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
    text = requirements_of(peer)[0].read_text()
    match = re.search(rf"^{package}==(\S+)", text, re.MULTILINE)
    if match is None:
        raise WrongVersion(peer, package, "without a pin", "a pinned version")
    return match.group(1)


def _uv(*arguments: str) -> None:
    subprocess.run([str(ROOT / ".venv" / "bin" / "uv"), *arguments], check=True, cwd=ROOT)
