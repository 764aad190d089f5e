"""Starts the Spark session, with settings that make results identical on every machine."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scoring.errors import EngineError
from scoring.files.parquet import ROWS_PER_BATCH

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = {"spark.sql.session.timeZone": "UTC"}  # of timestamps without a zone
DEFAULTS = {
    "spark.app.name": "model-serving",
    "spark.ui.enabled": "false",  # it would listen on every address, without a password
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "ERROR",
    "spark.sql.execution.arrow.maxRecordsPerBatch": str(ROWS_PER_BATCH),
}
ON_THIS_MACHINE = {
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.executorEnv.PYTHONPATH": str(ROOT),  # tasks import this package
}


def start_spark(master: str, configuration: Mapping[str, str]) -> "SparkSession":
    """Return this process's running session, or start one on `master`.

    Raises:
        EngineError: Java is not installed, or Spark does not start.
    """
    from pyspark.sql import SparkSession

    if not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
        raise EngineError("Spark needs Java 17 or later: install it, or set JAVA_HOME to its folder.")
    # Tasks run with this interpreter. Executors on other machines have the same path if they run the same image.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    local = ON_THIS_MACHINE if master.startswith("local") else {}
    builder = SparkSession.builder.master(master)
    for name, value in (DEFAULTS | local | dict(configuration) | ALWAYS).items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # exceptions of py4j, the JVM or pyspark
        raise EngineError(f"Spark does not start on {master!r} (SERVING_SPARK_MASTER): {error}") from error
