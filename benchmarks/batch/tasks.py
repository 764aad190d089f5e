"""All batch contenders by name."""

from collections.abc import Callable
from typing import Any

from benchmarks.batch.graph import GRAPHS
from benchmarks.batch.joins import JOINS
from benchmarks.batch.materialization import MATERIALIZATIONS
from benchmarks.batch.predictions import PREDICTIONS
from benchmarks.batch.replays import REPLAYS
from benchmarks.batch.task import Task

_KINDS: tuple[Any, ...] = (*JOINS, *PREDICTIONS, *GRAPHS, *REPLAYS, *MATERIALIZATIONS)
TASKS: dict[str, Callable[[int], Task]] = {kind.name: kind for kind in _KINDS}


def make_task(name: str, rows: int) -> Task:
    """Create the contender of this name for this number of rows."""
    return TASKS[name](rows)
