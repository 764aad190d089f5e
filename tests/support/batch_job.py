"""A batch job without a registry and Dagster: features of drivers, a linear model, and the local engine.

`python -m tests.support.batch_job <folder> <request>` scores a request in its own process and prints its memory use.
"""

import datetime as dt
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scoring.arrow.signature import ModelInput, Signature
from scoring.batch.engine import LocalEngine
from scoring.batch.manifest import Manifest, Origin
from scoring.batch.request import copied_request
from scoring.features.feature_service import link_features
from scoring.features.feature_store import apply_definitions, open_feature_store, read_definitions
from scoring.features.model_features import ModelFeatures
from scoring.files.location import Location
from scoring.models.model import Model
from scoring.models.outputs import ONE_NUMBER
from scoring.models.registry import ModelVersion
from scoring.predict import Policy
from scoring.serving import ServingModel
from scoring.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
SIGNATURE = Signature(tuple(ModelInput(name, pa.float64()) for name in ("acc_rate", "conv_rate", "avg_daily_trips")))
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
# The source of the features in feature_repo/definitions.py.
SOURCE = """path=f"{DATA}/driver_stats.parquet",
    s3_endpoint_override=os.environ.get("AWS_ENDPOINT_URL_S3", "")"""


class BatchJob:
    """An applied feature repository, and models that score its features."""

    def __init__(self, folder: Path) -> None:
        """Open the repository that `make_repository` made in the folder."""
        self.store: FeatureStore = open_feature_store(
            Settings(model_name="linear", feature_repo=folder / "feature_repo")
        )
        self.features: ModelFeatures = link_features(self.store, "linear/1", "driver_ranking", SIGNATURE, ())

    def model(self, version: int = 1, meanwhile: Callable[[], None] = lambda: None) -> Model:
        """A linear model; each version gives different scores. `meanwhile` is called at each prediction."""
        weights = np.array([0.3, 0.2, 0.001]) * version

        def predict(inputs: np.ndarray) -> np.ndarray:
            meanwhile()
            scores: np.ndarray = inputs @ weights
            return scores

        return Model(ModelVersion("linear", version), SIGNATURE, ONE_NUMBER, (predict,), as_array=True)

    def run(
        self,
        request: Location,
        artifacts: Location,
        version: int = 1,
        policy: Policy | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Score one request into `artifacts`, as the assets do."""
        folder = artifacts / Path(request.name).stem
        self.join(request, folder, version)
        return self.score(folder, self.model(version, meanwhile), policy)

    def join(self, request: Location, folder: Location, version: int = 1) -> None:
        """Write a request's batch_input.parquet into the folder."""
        with copied_request(request) as copy:
            definitions_hash = read_definitions(self.store).hash
            origin = Origin(copy.content, f"linear/{version}", self.features.service, definitions_hash)
            LocalEngine().write_input(copy, origin, self.store, self.features, folder)

    def score(self, folder: Location, model: Model, policy: Policy | None = None) -> Manifest:
        """Write the folder's batch_output.parquet and manifest."""
        return LocalEngine().write_output(folder, ServingModel(model, self.features), policy or Policy())


def limit_join_memory(folder: Path, limit: str) -> None:
    """Set the memory that a join may use before it spills to disk, for example `200MB`."""
    configuration = folder / "feature_repo" / "feature_store.yaml"
    configuration.write_text(configuration.read_text().replace("memory_limit: 1GB", f"memory_limit: {limit}"))


def make_repository(folder: Path, drivers: int = 20, hours: int = 30, source: str | None = None) -> None:
    """Copy and apply the project's feature repository, with a row per hour up to NOW for each driver below `drivers`.

    `source` defines another location of the features for Feast, `path="s3://...", s3_endpoint_override="..."`.
    """
    repository = folder / "feature_repo"
    shutil.copytree(ROOT / "feature_repo", repository, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (repository / "data").mkdir()
    write_driver_stats(repository / "data" / "driver_stats.parquet", drivers, hours)
    if source is not None:
        definitions = repository / "definitions.py"
        before, path, after = definitions.read_text().partition(SOURCE)
        assert path, f"{definitions} defines its source differently: change SOURCE"
        definitions.write_text(before + source + after)
    apply_definitions(open_feature_store(Settings(model_name="linear", feature_repo=repository)))


def write_driver_stats(file: Path, drivers: int, hours: int) -> None:
    """Write the drivers' features as a parquet file."""
    random = np.random.default_rng(3)
    rows = drivers * hours
    hour = np.repeat(np.arange(hours), drivers)
    times = pa.array(np.datetime64(NOW.replace(tzinfo=None), "us") - hour.astype("timedelta64[h]"))
    stamps = times.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
    stats = {
        "event_timestamp": stamps,
        "driver_id": pa.array(np.tile(np.arange(drivers), hours), pa.int64()),
        "conv_rate": pa.array(random.random(rows), pa.float32()),
        "acc_rate": pa.array(random.random(rows), pa.float32()),
        "avg_daily_trips": pa.array(random.integers(0, 1000, rows), pa.int64()),
        "created": stamps,
    }
    pq.write_table(pa.table(stats), file)


def write_request(file: Path, rows: int, drivers: int = 20) -> Location:
    """Write a request: the drivers in turn, an unknown driver in every hundredth row, timestamps of one day."""
    number = np.arange(rows)
    times = pa.array(np.datetime64(NOW.replace(tzinfo=None), "us") - (number * 37 % 86_400).astype("timedelta64[s]"))
    table = pa.table(
        {
            "driver_id": np.where(number % 100 == 99, -1, number % drivers),
            "event_timestamp": times.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC")),
            "order": pa.array(number).cast(pa.string()),
        }
    )
    if file.suffix == ".csv":
        pyarrow.csv.write_csv(table, file)
    else:
        pq.write_table(table, file, compression="zstd")
    return Location(file)


def peak_mib() -> float:
    """Return the peak memory of this process."""
    # Not ru_maxrss, because a program inherits the peak of its parent process (Linux 6).
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def measure(folder: Path, request: Path) -> dict[str, float]:
    """Score a few rows, so that everything is imported, then the request. Return rows, seconds and memory peaks."""
    job = BatchJob(folder)
    job.run(write_request(folder / "few.parquet", 1000), Location(folder / "artifacts"))
    before, started = peak_mib(), time.monotonic()
    manifest = job.run(Location(request), Location(folder / "artifacts"))
    took_s = round(time.monotonic() - started, 2)
    return {"rows": manifest.outcome.rows, "took_s": took_s, "before_mib": before, "peak_mib": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]))))
