"""Folders of the benchmarks' build products and results, all below var/, which git ignores."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
VAR = ROOT / "var" / "bench"
RESULTS = VAR / "results"
PEERS = ROOT / "benchmarks" / "peers"
PAGE = ROOT / "docs" / "benchmarks.md"
