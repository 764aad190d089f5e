"""What a batch contender is."""

from pathlib import Path
from typing import Protocol

from benchmarks.place import VAR

OUTPUT = VAR / "output"


class Task(Protocol):
    """A way to do one piece of work, in a process of its own."""

    def prepare(self) -> None:
        """Import everything and do the work once on little, so that only the work itself is timed."""

    def reset(self) -> None:
        """Bring back what a run changes. Called before each run, not timed."""

    def run(self) -> None:
        """The work."""

    def outcome(self) -> dict[str, object]:
        """What came out of the last run, for comparison with the others'. Not timed."""


def output_file(name: str) -> Path:
    """An empty place for a contender's output."""
    folder = OUTPUT / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "output.parquet"
    file.unlink(missing_ok=True)
    return file
