"""A client for the GraphQL API of Dagster's webserver. It does what a user would click."""

import json
import urllib.error
import urllib.request
from typing import Any

import msgspec

PARTITIONS = "batch_requests"
JOB = "serve_batch"

ADD_PARTITION = """
mutation ($selector: RepositorySelector!, $name: String!, $key: String!) {
  addDynamicPartition(repositorySelector: $selector, partitionsDefName: $name, partitionKey: $key) {
    __typename ... on PythonError { message } ... on UnauthorizedError { message }
  }
}"""
LAUNCH = """
mutation ($params: ExecutionParams!) {
  launchRun(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""
RUN = """
query ($run: ID!) {
  runOrError(runId: $run) {
    ... on Run { status startTime endTime stepStats { stepKey status startTime endTime } }
  }
}"""
RUNS = "{ runsOrError(limit: 100) { ... on Runs { results { runId status } } } }"
FAILURES = """
query ($run: ID!) {
  logsForRun(runId: $run) { ... on EventConnection { events {
    ... on ExecutionStepFailureEvent { stepKey error { message } failureMetadata { description } }
    ... on RunFailureEvent { message }
  } } }
}"""
LOCATIONS = """
{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus
    locationOrLoadError { __typename ... on RepositoryLocation { name repositories { name } }
        ... on PythonError { message } }
} } } }"""


class DagitRefused(Exception):
    """The webserver responded with an error. The message is the webserver's own."""


class Step(msgspec.Struct, frozen=True):
    """One step of a run: the asset's name, its status and its duration."""

    asset: str
    status: str
    seconds: float


class Run(msgspec.Struct, frozen=True):
    """The state of a run. `seconds` is its duration, 0 until it has ended."""

    status: str
    seconds: float
    steps: tuple[Step, ...]

    @property
    def ended(self) -> bool:
        """Whether the run has ended."""
        return self.status in {"SUCCESS", "FAILURE", "CANCELED"}


class Dagit:
    """A Dagster webserver on a local port."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._selector: dict[str, str] = {}

    def ready(self) -> bool:
        """Return whether the webserver responds and has loaded the code location.

        Raises:
            DagitRefused: the code location fails to load.
        """
        try:
            entries = self._ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
        except (OSError, KeyError):
            return False
        if not entries or entries[0]["loadStatus"] != "LOADED":
            return False
        location = entries[0]["locationOrLoadError"]
        if location["__typename"] != "RepositoryLocation":
            raise DagitRefused(location["message"])
        self._selector = {
            "repositoryLocationName": location["name"],
            "repositoryName": location["repositories"][0]["name"],
        }
        return True

    def launch(self, partition: str) -> str:
        """Add the batch request's partition, launch the whole graph for it, and return the run's id.

        Raises:
            DagitRefused: the webserver responded with an error.
        """
        answer = self._ask(ADD_PARTITION, selector=self._selector, name=PARTITIONS, key=partition)[
            "addDynamicPartition"
        ]
        if answer["__typename"] not in {"AddDynamicPartitionSuccess", "DuplicateDynamicPartitionError"}:
            raise DagitRefused(str(answer))
        parameters = {
            "selector": self._selector | {"jobName": JOB},
            "runConfigData": {},
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
        }
        answer = self._ask(LAUNCH, params=parameters)["launchRun"]
        if answer["__typename"] != "LaunchRunSuccess":
            raise DagitRefused(str(answer))
        return str(answer["run"]["runId"])

    def run(self, run_id: str) -> Run:
        """Return the state of a run."""
        found = self._ask(RUN, run=run_id)["runOrError"]
        steps = tuple(
            Step(step["stepKey"], step["status"] or "", (step["endTime"] or 0) - (step["startTime"] or 0))
            for step in found["stepStats"]
        )
        seconds = (found["endTime"] or 0) - (found["startTime"] or 0) if found["endTime"] else 0.0
        return Run(found["status"], seconds, steps)

    def runs(self) -> dict[str, str]:
        """Return the latest runs: id → status."""
        return {run["runId"]: run["status"] for run in self._ask(RUNS)["runsOrError"]["results"]}

    def failure(self, run_id: str) -> str:
        """Return why a run failed, in one line: the first failed step's reason."""
        for event in self._ask(FAILURES, run=run_id)["logsForRun"]["events"]:
            if event.get("stepKey"):
                reason = (event["failureMetadata"] or {}).get("description") or (event["error"] or {}).get(
                    "message", ""
                )
                return f"{event['stepKey']}: {reason.strip().splitlines()[0] if reason.strip() else 'no reason given'}"
        return f"see {self.url}/runs/{run_id}"

    def _ask(self, query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise DagitRefused(error.read().decode(errors="replace")[:500]) from None
        if answer.get("errors"):
            raise DagitRefused(answer["errors"][0]["message"])
        return answer["data"]
