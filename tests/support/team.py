"""The users of the full stack and their views of it: callers, the data scientist, the operator at Dagit."""

import datetime as dt
import io

import dagster as dg
import httpx
import pandas as pd
from pyarrow.fs import FileSelector, S3FileSystem

from tests.support import compose
from tests.support.dagster_servers import runs, ticks, wait_until
from tests.support.full_stack import Stack
from tests.support.servers import answers_http
from tests.support.worlds import DRIVER_INPUTS, World

AUTHORIZATION = {"Authorization": f"Bearer {compose.EXAMPLE_VALUES['SERVING_API_KEYS']}"}
OUTPUT = "artifacts/rides_today/batch_output.parquet"
SENSORS = ("new_batch_request", "new_model_version")
# Statuses of a tick that reached all servers that it needs.
GOOD = ("SKIPPED", "SUCCESS")
# A trial and a run take 8 s of CPU time each, and tests share two cores.
WITHIN_S = 150


class Team:
    """The users of one stack."""

    def __init__(self, stack: Stack, instance: dg.DagsterInstance) -> None:
        self.stack = stack
        self.instance = instance
        self.bucket = S3FileSystem(
            endpoint_override=stack.address("s3"),
            access_key=compose.EXAMPLE_VALUES["S3_ACCESS_KEY"],
            secret_key=compose.EXAMPLE_VALUES["S3_SECRET_KEY"],
        )
        # Creating a client costs more than a request. Each request has a new connection, because servers restart.
        self.http = httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0))
        environment = stack["code-location"].environment
        self.world = World(stack.places.folder, environment, dt.datetime.now(dt.UTC))

    def read(self, key: str) -> bytes:
        """Return an object of the bucket, of one version even if it is replaced meanwhile."""
        while True:
            with self.bucket.open_input_file(f"serving/{key}") as file:
                content, version = bytes(file.read()), file.metadata()["ETag"]
            with self.bucket.open_input_file(f"serving/{key}") as file:
                if file.metadata()["ETag"] == version:
                    return content

    def objects(self) -> dict[str, bytes]:
        """Return everything that batch has written."""
        found = self.bucket.get_file_info(FileSelector("serving/artifacts", recursive=True))
        return {each.path: self.read(each.path.removeprefix("serving/")) for each in found if each.is_file}

    def output(self) -> pd.DataFrame:
        """Return the request's scored rows."""
        return pd.read_parquet(io.BytesIO(self.read(OUTPUT)))

    def scored_with(self) -> set[int]:
        """Return the model versions in the request's output; none before it exists."""
        try:
            return set(self.output()["model_version"])
        except FileNotFoundError:
            return set()

    def ask(self, drivers: list[int]) -> httpx.Response:
        """Send POST /scores through the proxy."""
        body = {"request_id": "r", "driver_ids": drivers}
        return self.http.post(f"{self.stack.url}/scores", json=body, headers=AUTHORIZATION)

    def scores(self, drivers: list[int]) -> dict[int, float | None]:
        """Return the response's scores."""
        answer = self.ask(drivers)
        assert answer.status_code == 200, answer.text
        return {row["driver_id"]: row["score"] for row in answer.json()["scores"]}

    def versions_online(self) -> list[int | None]:
        """Return the version that each replica serves; None if it does not respond."""
        return [self._version(f"{self.stack.address(each.name)}/version") for each in self.stack.replicas]

    def _version(self, url: str) -> int | None:
        try:
            answer = self.http.get(url).json()
        except httpx.TransportError:
            return None
        return int(answer["model"]["version"]) if answer.get("model") else None

    def wait_until_ready(self, replica: str) -> None:
        """Wait until it reports that it is healthy."""
        url = f"{self.stack.address(replica)}/ready"
        wait_until(lambda: answers_http(self.stack[replica].port, "/ready"), url)

    def has_begun(self, run_id: str, step: str) -> bool:
        """Return whether the run is at this step, or past it."""
        started = self.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_START).records
        return any(record.event_log_entry.step_key == step for record in started)

    def train(self, alpha: float, *, promote: bool = True) -> int:
        """Register another version, trained on the features in S3."""
        stats = pd.read_parquet(io.BytesIO(self.read("features/driver_stats.parquet")))
        from sklearn.linear_model import ElasticNet

        frame = stats[DRIVER_INPUTS].astype("float64")
        model = ElasticNet(alpha=alpha).fit(frame, 2 * frame["conv_rate"] + frame["acc_rate"])
        tags = {"feast.feature_service": "driver_ranking"}
        return self.world.register(model, frame, tags=tags, promote=promote, input_example=frame.head(5))

    def wait_until_all_serve(self, version: int) -> None:
        """Wait until batch has scored with the version, and each replica serves it."""
        wait_until(lambda: self.versions_online() == [version] * 2, f"both replicas serve version {version}", WITHIN_S)
        wait_until(lambda: self.scored_with() == {version}, f"batch scored with version {version}", WITHIN_S)
        wait_until(lambda: all(run.is_finished for run in runs(self.instance)), "the end of all runs")

    def wait_for_good_ticks(self) -> None:
        """Wait until each sensor has finished another tick, with all servers that it needs."""
        now = dt.datetime.now(dt.UTC).timestamp()

        def looked(sensor: str) -> bool:
            newest = ticks(self.instance, sensor)[:1]
            return bool(newest) and newest[0].timestamp > now and newest[0].status.value in GOOD

        wait_until(lambda: all(looked(sensor) for sensor in SENSORS), "a good tick of each sensor")
