"""Where the benchmarks keep what they build and what they measured. All of it below var/, which git ignores."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
VAR = ROOT / "var" / "bench"
RESULTS = VAR / "results"
PEERS = ROOT / "benchmarks" / "peers"
PAGE = ROOT / "docs" / "benchmarks.md"
