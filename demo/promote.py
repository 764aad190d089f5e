"""`make demo-promote`: train and promote another version while the demo runs, and wait until the API serves it."""

import os
import sys
import time

from demo import show
from demo.data import this_hour
from demo.environment import MODEL, ROOT, CannotStart, demo_environment, make_folders
from demo.online import Api
from demo.prepare import DRIVER_STATS
from demo.training import champion_version, train_and_promote
from scoring.errors import ServingError
from scoring.features.feature_store import open_feature_store
from scoring.settings import Settings

ARRIVAL_S = 60.0


def main() -> int:
    """Promote a new version. Return 0 when the API serves it; otherwise print the reason in one line and return 1."""
    os.chdir(ROOT)
    os.environ.update(demo_environment())
    try:
        settings = Settings.from_environment(os.environ)
        before = champion_version(settings.mlflow_tracking_uri)
        if before is None or not DRIVER_STATS.exists():
            show.failure("there is no champion to replace: run `make demo` first, and keep it running.")
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
            show.failure(f"{MODEL}/{version} is the champion, but {api.url} does not serve it: is `make demo` running?")
            return 1
        time.sleep(0.2)
    show.online(*api.rank([1001, 1002, 1003, 9999]))
    print("Within seconds, the sensor new_model_version launches a run with this version. See Dagit.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
