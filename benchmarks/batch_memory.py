"""Peak memory and duration of one batch run, by number of rows and by the offline store's memory limit.

`python -m benchmarks.batch_memory [rows ...]`: 10,000 entities with 30 feature rows each, three features, a linear
model, Parquet input and output on the local disk. Each line comes from a separate process, which has scored 1000 rows
before the measurement starts.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.batch_job import limit_join_memory, make_repository, write_request

DRIVERS = 10_000
LIMITS = ("1GB", "200MB")
ROWS = (1_000_000, 10_000_000)


def main(rows: tuple[int, ...]) -> None:
    """Print a Markdown table."""
    print("| rows | `memory_limit` of the join | seconds | MiB before | MiB at the peak |\n|---|---|---|---|---|")
    for limit in LIMITS:
        with tempfile.TemporaryDirectory(prefix="batch-memory-") as name:
            folder = Path(name)
            make_repository(folder, drivers=DRIVERS)
            limit_join_memory(folder, limit)
            for count in rows:
                request = write_request(folder / f"rows{count}.parquet", count, DRIVERS).local
                took = run(folder, request)
                print(
                    f"| {took['rows']:,} | {limit} | {took['took_s']:.1f} "
                    f"| {took['before_mib']:.0f} | {took['peak_mib']:.0f} |",
                    flush=True,
                )


def run(folder: Path, request: Path | None) -> dict[str, float]:
    """Run `tests.support.batch_job` on this request and return its figures."""
    command = [sys.executable, "-m", "tests.support.batch_job", str(folder), str(request)]
    done = subprocess.run(command, env=dict(os.environ), stdout=subprocess.PIPE, text=True, check=True)
    took: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return took


if __name__ == "__main__":
    main(tuple(int(argument) for argument in sys.argv[1:]) or ROWS)
