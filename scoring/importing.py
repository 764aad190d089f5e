"""How the large libraries are imported: late, only where they are needed, and without the garbage collector.

It looks at everything again and again meanwhile and finds nothing, which is a quarter of the processor time that Feast,
MLflow, scikit-learn and pandas take (3.4 instead of 4.4 s, Python 3.11). What they leave in memory is the same.
"""

import contextlib
import gc
import os
from collections.abc import Iterator

# MLflow reads these at each call and nowhere else. Its own defaults wait 273 s for a server that is down (mlflow 3.17).
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Model files come through the server. It would send us to its object store instead, and who can't get there would
    # wait for minutes and blame the server (mlflow 3.17).
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
}


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No collection by itself within the block, in any thread. Blocks may overlap."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def import_mlflow() -> None:
    """Import MLflow's client, which neither waits for minutes nor sends anything to its makers."""
    for variable, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(variable, value)
    with collector_paused():
        from mlflow import MlflowClient
    del MlflowClient


def import_what_predicts() -> None:
    """Import what loads models, ours and MLflow's way, and what they predict with."""
    import_mlflow()
    with collector_paused():
        import mlflow.pyfunc
        import mlflow.sklearn
        import pandas
        import skops.io
    del mlflow, pandas, skops
