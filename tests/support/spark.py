"""A standalone Spark cluster: a master and workers, each a process on loopback."""

import dataclasses
import http.client
import json
from pathlib import Path
from typing import Any

from tests.support.servers import HOST, Server, free_port

# They start in half the processor time, and compute nothing.
OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@dataclasses.dataclass
class SparkMaster(Server):
    """Its web page, on loopback too, lists the workers."""

    page: int = dataclasses.field(default_factory=free_port)

    name = "master"
    starts_within_s = 180

    @property
    def url(self) -> str:
        return f"spark://{self.host}:{self.port}"

    def command(self) -> list[str]:
        place = ["--host", self.host, "--port", str(self.port), "--webui-port", str(self.page)]
        return [spark_class(), "org.apache.spark.deploy.master.Master", *place]

    def own_environment(self) -> dict[str, str]:
        return {"SPARK_DAEMON_JAVA_OPTS": OPTIONS, "SPARK_LOCAL_IP": HOST}

    def answers(self) -> bool:
        return self.state() is not None

    def state(self) -> dict[str, Any] | None:
        """Return what the master's page says in JSON; None if it does not respond."""
        connection = http.client.HTTPConnection(HOST, self.page, timeout=5)
        try:
            connection.request("GET", "/json/")
            state: dict[str, Any] = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, json.JSONDecodeError):
            return None
        finally:
            connection.close()
        return state


@dataclasses.dataclass
class SparkWorker(Server):
    """A worker with one core. `kill` also ends its executor, which is in the same session."""

    master: SparkMaster = dataclasses.field(kw_only=True)

    name = "worker"
    starts_within_s = 180

    def command(self) -> list[str]:
        place = ["--host", self.host, "--port", str(self.port), "--webui-port", str(free_port())]
        work = ["--cores", "1", "--memory", "1g", "--work-dir", str(self.directory)]
        return [spark_class(), "org.apache.spark.deploy.worker.Worker", *place, *work, self.master.url]

    def own_environment(self) -> dict[str, str]:
        return {"SPARK_DAEMON_JAVA_OPTS": OPTIONS, "SPARK_LOCAL_IP": HOST}

    def answers(self) -> bool:
        """Return whether the master has registered it."""
        workers = (self.master.state() or {"workers": []})["workers"]
        return any(each["port"] == self.port and each["state"] == "ALIVE" for each in workers)


def spark_class() -> str:
    import pyspark

    return str(Path(pyspark.__file__).parent / "bin" / "spark-class")
