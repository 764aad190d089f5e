"""Dagster instances for tests, each on SQLite files of its own."""

import functools
import shutil
import tempfile
from pathlib import Path

import dagster as dg


def new_instance(home: Path) -> dg.DagsterInstance:
    """An instance without runs whose files are below `home`, which may be there if it is empty."""
    shutil.copytree(_without_runs().name, home, dirs_exist_ok=True)
    return dg.DagsterInstance.local_temp(str(home))


@functools.cache
def _without_runs() -> "tempfile.TemporaryDirectory[str]":
    # Copied, because Dagster takes half a second of CPU and many writes to the disk to make its tables (1.13).
    folder = tempfile.TemporaryDirectory(prefix="dagster-home-")
    with dg.DagsterInstance.local_temp(folder.name) as instance:
        instance.get_run_records(limit=1)
        instance.get_dynamic_partitions("none")
        instance.all_instigator_state()
    return folder
