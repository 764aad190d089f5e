"""A client for the GraphQL API of Dagster's webserver, with the operations that a user performs in Dagit."""

import json
import re
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
FAILED_SINCE = """
query ($since: Float!) {
  runsOrError(filter: {statuses: [FAILURE], createdAfter: $since}, limit: 100) { ... on Runs { results { runId } } }
}"""
OUTPUTS_SINCE = """
query ($since: String!) {
  assetOrError(assetKey: {path: ["batch_output"]}) { ... on Asset {
    assetMaterializations(afterTimestampMillis: $since, limit: 250) { partition timestamp metadataEntries {
      label
      ... on TextMetadataEntry { text }
      ... on IntMetadataEntry { intValue }
      ... on MarkdownMetadataEntry { mdStr }
    } }
  } }
}"""
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
    """The webserver responded with an error. The message is that of the webserver."""


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
        """Return whether the run has ended."""
        return self.status in {"SUCCESS", "FAILURE", "CANCELED"}


class Scored(msgspec.Struct, frozen=True):
    """A published batch output."""

    request: str
    version: str
    """`name/version` of the model."""
    rows: int
    scored: int
    reasons: tuple[str, ...]
    """The number of rows per reason, as in `3 not_found`."""
    changes: str | None
    """How the predictions differ from those of the version that they replace; None if there is none."""
    timestamp_ms: int


class Dagit:
    """A Dagster webserver on a local port. `timeout_s` bounds each request."""

    def __init__(self, port: int, timeout_s: float = 30.0) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._timeout_s = timeout_s
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

    def scored_since(self, timestamp_ms: int) -> list[Scored]:
        """Return the batch outputs that were published after a time, in milliseconds since 1970, oldest first."""
        outputs = self._ask(OUTPUTS_SINCE, since=str(timestamp_ms))["assetOrError"].get("assetMaterializations", [])
        return [_scored(output) for output in reversed(outputs)]

    def failed_since(self, timestamp_s: float) -> list[str]:
        """Return the ids of failed runs that were created after a time, in seconds since 1970, oldest first."""
        runs = self._ask(FAILED_SINCE, since=timestamp_s)["runsOrError"]["results"]
        return [run["runId"] for run in reversed(runs)]

    def failure(self, run_id: str) -> str:
        """Return the reason of a run's first failed step, in one line."""
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
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise DagitRefused(error.read().decode(errors="replace")[:500]) from None
        if answer.get("errors"):
            raise DagitRefused(answer["errors"][0]["message"])
        return answer["data"]


def _scored(output: dict[str, Any]) -> Scored:
    metadata = {entry["label"]: entry for entry in output["metadataEntries"]}
    scored = metadata["rows_scored"]["intValue"]
    reasons = re.findall(r"^\| (\w+) \| (\d+) \|$", metadata["reasons"]["mdStr"], re.MULTILINE)
    return Scored(
        output["partition"],
        f"{metadata['model_name']['text']}/{metadata['model_version']['intValue']}",
        scored + metadata["rows_not_scored"]["intValue"],
        scored,
        tuple(f"{rows} {reason}" for reason, rows in reasons),
        metadata["changed_predictions"]["text"] if "changed_predictions" in metadata else None,
        int(output["timestamp"]),
    )
