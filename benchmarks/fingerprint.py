"""What a world is made of: where it has changed, the world is built anew."""

import hashlib
from pathlib import Path

from benchmarks.place import ROOT


def fingerprint(*modules: str) -> str:
    """A hash of the feature repository's own files and of the modules (their `__file__`) that make a world of it."""
    digest = hashlib.sha256()
    definitions = sorted(path for path in (ROOT / "feature_repo").iterdir() if path.suffix in {".py", ".yaml"})
    for file in (*definitions, ROOT / "tests" / "worlds.py", *map(Path, modules)):
        digest.update(file.read_bytes())
    return digest.hexdigest()
