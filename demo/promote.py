"""`make demo-promote`: train and promote another version while the demo runs, and wait until the API serves it."""

import os
import sys
import time

from cli.processes import CannotStart
from demo import show
from demo.dagit import Dagit, DagitRefused
from demo.data import this_hour
from demo.environment import ALIAS, MODEL, ROOT, demo_environment
from demo.online import NO_STATE, Api
from demo.prepare import DRIVER_STATS
from demo.running import NotUp, read_ports
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
        ports = read_ports()
        api, dagit = Api(ports.api), Dagit(ports.dagit)
        _check_up(api, dagit)
        show.busy("Importing Feast and MLflow")
        before = champion_version(settings.mlflow_tracking_uri)
        if before is None:
            raise CannotStart(f"MLflow has no {MODEL}@{ALIAS} to replace: restart `make demo`, which trains one.")
        store = open_feature_store(settings)
        trained = train_and_promote(store, settings.mlflow_tracking_uri, DRIVER_STATS, this_hour(), seed=before + 1)
        show.trained(trained)
        _wait_until_served(api, trained.version)
    except (ServingError, CannotStart, DagitRefused) as error:
        show.failure(str(error))
        return 1
    except KeyboardInterrupt:
        show.failure("interrupted: a version that is already promoted stays the champion.")
        return 130
    show.online(*api.rank([1001, 1002, 1003, 9999]))
    print(f"Within seconds, the sensor new_model_version launches a run with this version: {dagit.url}/runs")
    return 0


def _check_up(api: Api, dagit: Dagit) -> None:
    """Check that the servers work, because otherwise the promotion would have no visible effect."""
    try:
        state = api.state()
    except NO_STATE:
        raise NotUp() from None
    if state.get("alias") != f"{MODEL}@{ALIAS}":
        raise NotUp()
    if not state["ready"]:
        raise CannotStart(f"the API at {api.url} is not ready: {state.get('detail', 'no reason given')}")
    if not dagit.ready():
        raise CannotStart(f"Dagit at {dagit.url} does not respond: see var/logs/dagit.log, and restart `make demo`.")


def _wait_until_served(api: Api, version: int) -> None:
    until = time.monotonic() + ARRIVAL_S
    while (serving := api.version()) != version:
        if serving is None or time.monotonic() > until:
            raise CannotStart(
                f"{MODEL}/{version} is the champion, but {api.url} does not serve it: see {api.url}/ready"
            )
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
