"""Save the model, then become the server that `mlflow models serve --env-manager local --workers 1` starts."""

import os
import shlex
import sys
from pathlib import Path

import mlflow
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import ColSpec, Schema

if __name__ == "__main__":
    model, signature = "model", ModelSignature(Schema([ColSpec("long", "driver_id")]), Schema([ColSpec("double")]))
    code = Path(__file__).with_name("model.py")
    mlflow.pyfunc.save_model(model, python_model=code, signature=signature, pip_requirements=[])
    command, environment = scoring_server.get_cmd(model, int(sys.argv[1]), "127.0.0.1", nworkers=1)
    # uvicorn reads its options from these too. No peer writes an access log.
    environment["UVICORN_ACCESS_LOG"] = "false"
    os.execve(sys.executable, [sys.executable, "-m", *shlex.split(command)], environment)  # noqa: S606 - becomes it
