"""`python -m demo.stack`: put the example on the servers that the environment names, as `make demo` puts it into files.

For docker-compose.yml: `docker compose run --rm code-location python -m demo.stack`. Writes the drivers' statistics to
FEATURE_DATA, applies the definitions, fills the online store, trains and promotes a model, and leaves a batch request
for the sensor to find. What is there already is kept and continued.
"""

import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from demo import show
from demo.data import DRIVERS, extend_driver_stats, this_hour, write_batch_request
from demo.place import MODEL, REQUEST, CannotStart
from demo.training import champion_version, train_and_promote
from scoring.errors import ServingError
from scoring.features.feature_store import apply_definitions, open_feature_store
from scoring.features.materialize import materialize_online_store
from scoring.files.location import Location
from scoring.files.transfer import fetch, publishing
from scoring.settings import Settings

DRIVER_STATS = "driver_stats.parquet"


def main() -> int:
    """Do it; 0 when all is there, 1 with the reason in one line when not."""
    try:
        settings = Settings.from_environment(os.environ)
        if settings.model_name != MODEL:
            raise CannotStart(f"SERVING_MODEL_NAME is {settings.model_name!r}: the example registers {MODEL!r}.")
        with tempfile.TemporaryDirectory(prefix="example-") as folder:
            prepare(settings, feature_data(settings), Path(folder))
    except (ServingError, CannotStart) as error:
        show.failure(str(error))
        return 1
    return 0


def feature_data(settings: Settings) -> Location:
    """Where feature_repo/definitions.py looks for the sources' files."""
    place = Location(os.environ.get("FEATURE_DATA", "data"))
    return place if place.local is None else Location(settings.feature_repo / place.local)


def prepare(settings: Settings, data: Location, scratch: Path) -> None:
    """Bring the example's state on the servers up to now."""
    show.busy("Importing Feast and MLflow")
    champion = champion_version(settings.mlflow_tracking_uri)  # first: without a registry nothing is of use
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
    """Copy a small file to where servers look for it."""
    with publishing(destination) as part:
        part.write_bytes(file.read_bytes())


if __name__ == "__main__":
    sys.exit(main())
