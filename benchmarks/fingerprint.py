"""Fingerprint of a world's sources. A world is rebuilt when it changes."""

import hashlib
from pathlib import Path

from benchmarks.paths import ROOT


def fingerprint(*modules: str) -> str:
    """Hash the feature repository's files and the modules (their `__file__`) that build a world from it."""
    digest = hashlib.sha256()
    definitions = sorted(path for path in (ROOT / "feature_repo").iterdir() if path.suffix in {".py", ".yaml"})
    for file in (*definitions, ROOT / "tests" / "support" / "worlds.py", *map(Path, modules)):
        digest.update(file.read_bytes())
    return digest.hexdigest()
