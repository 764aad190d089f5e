"""The demo's folders and names, and the environment of its servers."""

import os
from collections.abc import Mapping
from pathlib import Path

from cli.processes import CannotStart

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / "var"
REQUESTS = STATE / "batch_requests"
ARTIFACTS = STATE / "artifacts"
LOGS = STATE / "logs"
DAGSTER_HOME = STATE / "dagster_home"
MODEL_ARTIFACTS = STATE / "model_artifacts"
FEATURE_DATA = ROOT / "feature_repo" / "data"

MODEL = "driver_ranker"
ALIAS = "champion"
FEATURE_SERVICE = "driver_ranking"
REQUEST = "rides_today"

DAGIT_PORT = "DAGIT_PORT"
MLFLOW_PORT = "MLFLOW_PORT"


def demo_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the caller's environment with the demo's own settings: its folders, its model, and telemetry off."""
    return dict(environment) | {
        "SERVING_MODEL_NAME": MODEL,
        "SERVING_MODEL_ALIAS": ALIAS,
        "SERVING_FEATURE_REPO": str(ROOT / "feature_repo"),
        "SERVING_BATCH_REQUESTS": str(REQUESTS),
        "SERVING_ARTIFACTS": str(ARTIFACTS),
        "SERVING_PREDICTION_LOG": str(STATE / "prediction_log"),
        "SERVING_PREDICTION_LOG_SECONDS": "1",
        "SERVING_DRAIN_S": "0",  # no load balancer has to notice that the API stops
        "SERVING_POLL_INTERVAL_S": environment.get("SERVING_POLL_INTERVAL_S", "2"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{STATE / 'mlflow.db'}",
        "DAGSTER_HOME": str(DAGSTER_HOME),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH")))),
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Job execution (mlflow 3.17) starts eight more processes, for features that the demo does not use.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }


def make_folders() -> None:
    """Create the folders of the demo's state.

    Raises:
        CannotStart: a folder can't be created or written to.
    """
    for folder in (REQUESTS, ARTIFACTS, LOGS, DAGSTER_HOME, MODEL_ARTIFACTS, FEATURE_DATA):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise CannotStart(f"Can't write to {folder} ({error.strerror}): the demo stores its state there.") from None
