"""Replays what the demo's API has answered."""

import time
from datetime import UTC, datetime

from cli.processes import CannotStart
from scoring.features.feature_store import open_feature_store
from scoring.files.location import Location
from scoring.models.registry import MlflowRegistry
from scoring.monitoring.log_files import day_folder, log_files
from scoring.monitoring.replay import ReplayReport, replay, report_file
from scoring.settings import Settings

LOGGED_WITHIN_S = 30.0


def replay_today(log: Location, settings: Settings, request_time: float) -> ReplayReport:
    """Wait until the log has a file newer than `request_time`, in seconds since 1970, and replay today's log.

    Raises:
        CannotStart: nothing was logged.
        ServingError: see `replay`.
    """
    day = datetime.now(UTC).date().isoformat()
    folder, until = day_folder(log, day), time.monotonic() + LOGGED_WITHIN_S
    while not any(entry.modified_ns / 1e9 >= request_time for entry in log_files(folder)):
        if time.monotonic() > until:
            raise CannotStart(f"the API wrote no prediction log to {folder}: see var/logs.")
        time.sleep(0.1)
    registry, store = MlflowRegistry.from_settings(settings), open_feature_store(settings)
    return replay(folder, settings, registry, store, report_file(log, day))
