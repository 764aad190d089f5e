"""The lines that the demo prints."""

import sys
import time

import pyarrow.parquet as pq

from demo.dagit import Run, Step
from demo.environment import ARTIFACTS, FEATURE_SERVICE, MODEL, REQUEST, ROOT
from demo.training import Trained
from scoring.features.feature_store import AppliedDefinitions
from scoring.monitoring.replay import ReplayReport
from scoring.monitoring.replay_causes import UNEXPLAINED

_START = time.monotonic()
PRINTED_ROWS = 4
_RUN_STATUS = {"SUCCESS": "succeeded", "FAILURE": "failed", "CANCELED": "was canceled"}


def title() -> None:
    """Print the title."""
    print("Batch and online predictions from one model registry and one feature store\n")


def busy(text: str) -> None:
    """Print that a slow step begins."""
    _line("", f"{text} ...")


def features(
    drivers: int, added: int, applied: AppliedDefinitions, file: str = "feature_repo/data/driver_stats.parquet"
) -> None:
    """Print that the feature data and definitions are ready."""
    _line("Features", f"{drivers} drivers, {added} new hourly rows in {file}")
    _line(
        "",
        f"feast apply: feature view {', '.join(applied.feature_views)}, "
        f"feature service {', '.join(applied.feature_services)}",
    )


def trained(trained: Trained) -> None:
    """Print that a new version is registered and promoted."""
    _line(
        "Model",
        f"ElasticNet trained on {trained.orders} past orders with point-in-time features "
        f"(R² {trained.r2:.2f} on held-out orders)",
    )
    _line("", f"registered as {MODEL}/{trained.version} with feature service {FEATURE_SERVICE}, alias champion set")


def champion_kept(version: int) -> None:
    """Print that the model of an earlier demo is used."""
    _line(
        "Model",
        f"{MODEL}/{version}, the champion of an earlier demo "
        "(make demo-promote trains another one, make clean starts over)",
    )


def batch_request(rows: int, file: str = f"var/batch_requests/{REQUEST}.csv") -> None:
    """Print that the batch request is written."""
    _line("Request", f"{rows} rows in {file}")


def run_started(url: str, run_id: str) -> None:
    """Print that the run of the asset graph is launched."""
    _line("Batch", f"Dagster materializes the asset graph: {url}/runs/{run_id}")


def step(step: Step) -> None:
    """Print that an asset is materialized or has failed."""
    mark = "✓" if step.status == "SUCCESS" else "✗"
    _line("", f"{mark} {step.asset:<26} {step.seconds:5.1f} s")


def run_ended(run: Run) -> None:
    """Print that the run has ended."""
    _line("", f"run {_RUN_STATUS[run.status]} in {run.seconds:.1f} s")


def batch_output() -> None:
    """Print the last rows of the batch output."""
    file = ARTIFACTS / REQUEST / "batch_output.parquet"
    table = pq.read_table(file)
    rows = table.select(
        ["driver_id", "event_timestamp", "conv_rate", "acc_rate", "prediction", "reason", "model_version"]
    )
    last = rows.slice(table.num_rows - PRINTED_ROWS).to_pandas()
    _line("", f"{table.num_rows} rows in {file.relative_to(ROOT)}, the last {PRINTED_ROWS} of them:")
    for text in last.to_string(index=False, float_format="{:.4f}".format).splitlines():
        print(f"{'':>19}{text}")


def online(request: str, answer: str) -> None:
    """Print a request and its response."""
    _line("Online", f"POST /inference {request}")
    _line("", f"→ {answer}")


def replayed(report: ReplayReport) -> None:
    """Print whether the API's answers are what batch computes."""
    causes = [f"{rows} {cause}" for cause, rows in report.causes.items() if rows or cause == UNEXPLAINED]
    _line("Replay", f"{report.rows} logged answers, joined and scored again as of their time by batch:")
    _line("", f"{report.rows - report.different} are equal to the bit, {', '.join(causes)}")


def addresses(dagit: str, api: str, mlflow: str) -> None:
    """Print the addresses of the servers and suggestions."""
    print(
        f"""
Running until Ctrl-C:
  Dagster UI (Dagit)  {dagit}/asset-groups  materialize assets, inspect their metadata and the sensors
                      {request_page(dagit, REQUEST)}
                      preview and plots of the batch output
  Swagger UI          {api}/  try POST /inference and POST /scores
  MLflow UI           {mlflow}/#/models/{MODEL}  the registered versions; ready in a few seconds
Next, in another terminal:
  make demo-promote
      trains and promotes a new version: the API serves it, and a sensor scores the request again
  cp var/batch_requests/{REQUEST}.csv var/batch_requests/tomorrow.csv
      adds a batch request: a sensor scores it
""",
        flush=True,
    )


def request_page(dagit: str, request: str) -> str:
    """Return the address of Dagit's page of a batch output."""
    return f"{dagit}/assets/batch_output?view=partitions&partition={request}"


def event(topic: str, text: str) -> None:
    """Print an event with the local time."""
    print(f"{time.strftime('%H:%M:%S')} {topic:<10} {text}", flush=True)


def failure(text: str) -> None:
    """Print why the demo stopped."""
    print(f"demo: {text}", file=sys.stderr)


def stopping() -> None:
    """Print that the servers are being stopped."""
    print("Stopping all servers.", flush=True)


def _line(head: str, text: str) -> None:
    print(f"{time.monotonic() - _START:5.1f} s  {head:<10} {text}", flush=True)
