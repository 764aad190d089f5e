"""The Spark session, with the settings that make its results the same on every machine."""

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
# Feast's query compares timestamps as strings without a zone (feast 0.67): both sides must be UTC.
ALWAYS = {
    "spark.sql.session.timeZone": "UTC",
    # pandas writes nanoseconds by default, which Spark refuses to read without this (spark 4.3).
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}
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
    """This process's session: the one that is running, or a new one on `master`.

    Raises:
        EngineError: there is no Java, or Spark does not start.
    """
    from pyspark.sql import SparkSession

    if not os.environ.get("JAVA_HOME") and shutil.which("java") is None:
        raise EngineError("Spark needs Java 17 or later: install one, or set JAVA_HOME to where it is.")
    # Tasks run with this interpreter. Executors on other machines have it in the same place if they run the same image.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    local = ON_THIS_MACHINE if master.startswith("local") else {}
    builder = SparkSession.builder.master(master)
    for name, value in (DEFAULTS | local | dict(configuration) | ALWAYS).items():
        builder = builder.config(name, value)
    try:
        return builder.getOrCreate()
    except Exception as error:  # py4j's, the JVM's and pyspark's own kinds
        raise EngineError(f"Spark does not start on {master!r} (SERVING_SPARK_MASTER): {error}") from error
