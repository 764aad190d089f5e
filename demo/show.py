"""What the demonstration tells a person, line by line."""

import sys
import time

import pyarrow.parquet as pq

from demo.dagit import Run, Step
from demo.place import ARTIFACTS, FEATURE_SERVICE, MODEL, REQUEST, ROOT
from demo.training import Trained
from scoring.features.feature_store import AppliedDefinitions

_START = time.monotonic()
SHOWN_ROWS = 4


def title() -> None:
    """Say what this is."""
    print("Model serving, batch and online, from one registry and one feature store\n")


def busy(text: str) -> None:
    """Say what takes a while."""
    _line("", f"{text} ...")


def features(
    drivers: int, added: int, applied: AppliedDefinitions, place: str = "feature_repo/data/driver_stats.parquet"
) -> None:
    """The feature store is ready."""
    _line("Features", f"{drivers} drivers, {added} new hourly rows in {place}")
    _line(
        "",
        f"Feast registry applied: view {', '.join(applied.feature_views)}, "
        f"service {', '.join(applied.feature_services)}",
    )


def trained(trained: Trained) -> None:
    """A new version is registered and promoted."""
    _line(
        "Model",
        f"ElasticNet trained on {trained.orders} orders as of their moment (R² {trained.r2:.2f} on unseen ones)",
    )
    _line("", f"registered as {MODEL}/{trained.version}, tagged {FEATURE_SERVICE}, alias champion set")


def champion_kept(version: int) -> None:
    """An earlier demonstration's model is used."""
    _line(
        "Model",
        f"{MODEL}/{version} is champion from an earlier demo (make demo-promote trains another, make clean forgets)",
    )


def batch_request(rows: int, place: str = f"var/batch_requests/{REQUEST}.csv") -> None:
    """The batch request file is written."""
    _line("Request", f"{rows} rows in {place}")


def run_started(url: str, run_id: str) -> None:
    """The graph's run is launched."""
    _line("Batch", f"Dagster materializes the asset graph: {url}/runs/{run_id}")


def step(step: Step) -> None:
    """An asset is materialized, or failed."""
    mark = "✓" if step.status == "SUCCESS" else "✗"
    _line("", f"{mark} {step.asset:<26} {step.seconds:5.1f} s")


def run_ended(run: Run) -> None:
    """The run is over."""
    _line("", f"run {run.status.lower()} in {run.seconds:.1f} s")


def batch_output() -> None:
    """A few rows of the result."""
    file = ARTIFACTS / REQUEST / "batch_output.parquet"
    table = pq.read_table(file)
    rows = table.select(
        ["driver_id", "event_timestamp", "conv_rate", "acc_rate", "prediction", "reason", "model_version"]
    )
    last = rows.slice(table.num_rows - SHOWN_ROWS).to_pandas()
    _line("", f"{table.num_rows} rows in {file.relative_to(ROOT)}, the last of them:")
    for text in last.to_string(index=False, float_format="{:.4f}".format).splitlines():
        print(f"{'':>19}{text}")


def online(request: str, answer: str) -> None:
    """One request and its answer."""
    _line("Online", f"POST /inference {request}")
    _line("", f"→ {answer}")


def addresses(dagit: str, api: str) -> None:
    """Where to look, and what to try next."""
    print(
        f"""
Up, until Ctrl-C:
  Dagit    {dagit}/asset-groups   materialize assets, look at their metadata and at the sensors
  Swagger  {api}/   try POST /inference and POST /scores
Try next, in another terminal:
  make demo-promote        trains and promotes a new version: a new run in Dagit, the API answers with it
  cp var/batch_requests/{REQUEST}.csv var/batch_requests/tomorrow.csv   a sensor scores the new request
""",
        flush=True,
    )


def failure(text: str) -> None:
    """Why the demonstration could not go on."""
    print(f"demo: {text}", file=sys.stderr)


def stopping() -> None:
    """The servers are being ended."""
    print("Stopping all servers.", flush=True)


def _line(head: str, text: str) -> None:
    print(f"{time.monotonic() - _START:5.1f} s  {head:<10} {text}", flush=True)
