"""`python -m demo.stack`: load the example of `make demo` onto the servers that the environment names.

For docker-compose.yml: `docker compose run --rm code-location python -m demo.stack`. It writes the driver statistics to
FEATURE_DATA, applies the definitions, fills the online store, trains and promotes a model, and writes a batch request
for the sensor to find. Existing state is kept and extended.
"""

import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from cli.processes import CannotStart
from demo import show
from demo.data import DRIVERS, extend_driver_stats, this_hour, write_batch_request
from demo.environment import MODEL, REQUEST
from demo.training import champion_version, train_and_promote
from scoring.errors import ServingError
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.features.materialize import materialize_online_store
from scoring.files.location import Location
from scoring.files.transfer import fetch, publishing
from scoring.settings import Settings

DRIVER_STATS = "driver_stats.parquet"


def main() -> int:
    """Load the example. Return 0 on success; otherwise print the reason in one line and return 1."""
    try:
        settings = Settings.from_environment(os.environ)
        if settings.model_name != MODEL:
            raise CannotStart(f"SERVING_MODEL_NAME is {settings.model_name!r}, but the example registers {MODEL!r}.")
        with tempfile.TemporaryDirectory(prefix="example-") as folder:
            prepare(settings, feature_data(settings), Path(folder))
    except (ServingError, CannotStart) as error:
        show.failure(str(error))
        return 1
    return 0


def feature_data(settings: Settings) -> Location:
    """Return the location of the source files, as feature_repo/definitions.py defines it."""
    data = Location(os.environ.get("FEATURE_DATA", "data"))
    return data if data.local is None else Location(settings.feature_repo / data.local)


def prepare(settings: Settings, data: Location, scratch: Path) -> None:
    """Bring the example's state on the servers up to date."""
    show.busy("Importing Feast and MLflow")
    champion = champion_version(settings.mlflow_tracking_uri)  # first, because nothing else helps without a registry
    hour, stats = this_hour(), scratch / DRIVER_STATS
    if (data / DRIVER_STATS).exists():
        fetch(data / DRIVER_STATS, stats)
    added = extend_driver_stats(stats, hour)
    publish(stats, data / DRIVER_STATS)

    store = open_feature_store(settings)
    show.features(len(DRIVERS), added, apply_definitions(store), str(data / DRIVER_STATS))
    materialize_online_store(store, datetime.now(UTC))

    if champion is None:
        show.trained(train_and_promote(store, settings.mlflow_tracking_uri, stats, hour, seed=1))
    else:
        show.champion_kept(champion)

    request = scratch / f"{REQUEST}.csv"
    rows = write_batch_request(request, hour)
    publish(request, settings.batch_requests / request.name)
    show.batch_request(rows, str(settings.batch_requests / request.name))


def publish(file: Path, destination: Location) -> None:
    """Publish a small file at a location of the servers."""
    with publishing(destination) as part:
        part.write_bytes(file.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
