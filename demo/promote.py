"""`make demo-promote`: train and promote another version while the demonstration runs, and watch it arrive."""

import os
import sys
import time

from demo import show
from demo.data import this_hour
from demo.online import Api
from demo.place import MODEL, ROOT, CannotStart, demo_environment, make_folders
from demo.prepare import DRIVER_STATS
from demo.training import champion_version, train_and_promote
from scoring.errors import ServingError
from scoring.features.feature_store import open_feature_store
from scoring.settings import Settings

ARRIVAL_S = 60.0


def main() -> int:
    """Promote; 0 when the API serves the new version, 1 with the reason in one line when not."""
    os.chdir(ROOT)
    os.environ.update(demo_environment())
    try:
        settings = Settings.from_environment(os.environ)
        before = champion_version(settings.mlflow_tracking_uri)
        if before is None or not DRIVER_STATS.exists():
            show.failure("nothing to promote over: run `make demo` first, and leave it up.")
            return 1
        make_folders()
        store = open_feature_store(settings)
        trained = train_and_promote(store, settings.mlflow_tracking_uri, DRIVER_STATS, this_hour(), seed=before + 1)
    except (ServingError, CannotStart) as error:
        show.failure(str(error))
        return 1
    show.trained(trained)
    return _watch(Api(settings.port), trained.version)


def _watch(api: Api, version: int) -> int:
    until = time.monotonic() + ARRIVAL_S
    while (serving := api.version()) != version:
        if serving is None or time.monotonic() > until:
            show.failure(f"{MODEL}/{version} is champion, but no API on {api.url} serves it: is `make demo` up?")
            return 1
        time.sleep(0.2)
    show.online(*api.rank([1001, 1002, 1003, 9999]))
    print("In Dagit, the sensor new_model_version starts a run for it within seconds.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
