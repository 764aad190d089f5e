"""Dagster's processes for tests: Dagit and the daemon, with one DAGSTER_HOME."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import httpx

from tests.support import servers
from tests.support.servers import Server, answers_http

ROOT = Path(__file__).resolve().parents[2]
WORKSPACE = ROOT / "workspace.yaml"


@dataclasses.dataclass
class Dagit(Server):
    """The webserver with the project's code location."""

    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    name = "dagit"

    def own_environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT)} | self.environment

    def command(self) -> list[str]:
        place = ("-h", self.host, "-p", str(self.port))
        return [sys.executable, "-m", "dagster_webserver", "-w", str(WORKSPACE), *place]

    def answers(self) -> bool:
        return answers_http(self.port, "/server_info")

    def ask(self, query: str, **variables: Any) -> Any:
        """Return the `data` of a GraphQL response."""
        url = f"http://{self.host}:{self.port}/graphql"
        return httpx.post(url, json={"query": query, "variables": variables}, timeout=30, verify=False).json()["data"]


@dataclasses.dataclass
class Daemon(Server):
    """The daemon, with the sensors as the project starts them: running."""

    environment: dict[str, str] = dataclasses.field(default_factory=dict)

    name = "daemon"
    warm = True

    def own_environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT)} | self.environment

    def command(self) -> list[str]:
        return [sys.executable, "-m", "dagster._daemon", "run", "-w", str(WORKSPACE)]

    def answers(self) -> bool:
        return "Instance is configured with the following daemons" in self.log.read_text(errors="replace")


def runs(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """Return all runs, oldest first."""
    return [record.dagster_run for record in reversed(instance.get_run_records())]


def ticks(instance: dg.DagsterInstance, sensor: str) -> list[Any]:
    """Return the sensor's finished ticks, newest first."""
    states = [state for state in instance.all_instigator_state() if state.instigator_name == sensor]
    found = [tick for state in states for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id)]
    return [tick for tick in found if tick.status.value != "STARTED"]


def wait_for_ticks(instance: dg.DagsterInstance, *sensors: str, more: int = 2, within_s: float = 180) -> None:
    """Wait until each of the sensors has finished `more` ticks from now on."""
    seen = {sensor: len(ticks(instance, sensor)) for sensor in sensors}
    wait_until(
        lambda: all(len(ticks(instance, sensor)) >= seen[sensor] + more for sensor in sensors),
        f"{more} ticks of {', '.join(sensors)}",
        within_s,
    )


def wait_until(happened: Callable[[], object], what: str, within_s: float = 180) -> None:
    """Wait until the condition holds; each look reads the instance's database."""
    servers.wait_until(happened, what, within_s, every_s=0.5)
