"""The interface of a batch contender."""

from pathlib import Path
from typing import Protocol

from benchmarks.paths import VAR

OUTPUT = VAR / "output"


class Task(Protocol):
    """One way to do a piece of work, run in a separate process."""

    def prepare(self) -> None:
        """Import everything and do the work once on few rows, so that timing covers only the work itself."""

    def reset(self) -> None:
        """Undo the changes of the last run. Called before each run, not timed."""

    def run(self) -> None:
        """Do the work."""

    def outcome(self) -> dict[str, object]:
        """Describe the result of the last run, for comparison with other contenders. Not timed."""


def output_file(name: str) -> Path:
    """Return the path of a contender's output file, which does not exist yet."""
    folder = OUTPUT / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "output.parquet"
    file.unlink(missing_ok=True)
    return file
