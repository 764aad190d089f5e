"""The functions that a batch engine calls while it writes a result."""

from collections.abc import Callable, Mapping

from scoring.batch.manifest import ScoringSummary
from scoring.files.parquet import ParquetFiles

# Inspects a finished input before it is published, and raises to discard it. Gets the table, the number of rows of the
# request, and view → number of rows whose feature row was too old (empty if the offline store does not report it).
InspectInput = Callable[[ParquetFiles, int, Mapping[str, int]], None]
# The same for a finished output.
InspectOutput = Callable[[ParquetFiles, ScoringSummary], None]
# Called with the number of rows that are done, and of all rows.
ReportRows = Callable[[int, int], None]


def accept(*_: object) -> None:
    """Accept without inspection, or ignore a report."""
