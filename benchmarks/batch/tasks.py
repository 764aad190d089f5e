"""All batch contenders by name."""

from benchmarks.batch.graph import GRAPHS
from benchmarks.batch.joins import JOINS
from benchmarks.batch.materialization import MATERIALIZATIONS
from benchmarks.batch.predictions import PREDICTIONS
from benchmarks.batch.task import Task

TASKS = {kind.name: kind for kind in (*JOINS, *PREDICTIONS, *GRAPHS, *MATERIALIZATIONS)}


def make_task(name: str, rows: int) -> Task:
    """Create the contender of this name for this number of rows."""
    return TASKS[name](rows)
