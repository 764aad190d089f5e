"""Dagster instances for tests, each on its own SQLite files."""

import functools
import shutil
import tempfile
from pathlib import Path

import dagster as dg


def new_instance(home: Path) -> dg.DagsterInstance:
    """Return an instance without runs, with its files in `home`, which may exist if it is empty."""
    shutil.copytree(_without_runs().name, home, dirs_exist_ok=True)
    return dg.DagsterInstance.local_temp(str(home))


@functools.cache
def _without_runs() -> "tempfile.TemporaryDirectory[str]":
    # Copied, because creating the tables takes half a second of CPU time and many disk writes (Dagster 1.13).
    folder = tempfile.TemporaryDirectory(prefix="dagster-home-")
    with dg.DagsterInstance.local_temp(folder.name) as instance:
        instance.get_run_records(limit=1)
        instance.get_dynamic_partitions("none")
        instance.all_instigator_state()
    return folder
