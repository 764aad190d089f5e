"""Schedules: updating the online store, scoring every entity, and replaying the prediction log."""

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Any

import dagster as dg

from scoring.settings import Schedule
from serving_assets.sensors.jobs import refresh_online_store, replay_day, request_everyone

Tick = Callable[[dg.ScheduleEvaluationContext], dg.RunRequest]


def all_schedules(running: Collection[Schedule]) -> tuple[dg.ScheduleDefinition, ...]:
    """Return the schedules. Those that `running` does not name are stopped until somebody starts them in Dagit.

    The first is stopped by default, so that no second writer starts if another process (`feast
    materialize-incremental`, a stream) already fills the store. For another time of the day, add a schedule of the same
    job.
    """

    def schedule(
        name: Schedule,
        job: Any,  # Dagster's type of a job of assets is not public
        cron: str,
        text: str,
        tick: Tick | None = None,
    ) -> dg.ScheduleDefinition:
        return dg.ScheduleDefinition(
            name=name,
            job=job,
            cron_schedule=cron,
            execution_timezone="UTC",
            execution_fn=tick,
            default_status=getattr(dg.DefaultScheduleStatus, "RUNNING" if name in running else "STOPPED"),
            description=f"{text} Stopped by default: start it here, or name it in SERVING_SCHEDULES.",
        )

    return (
        schedule(
            "hourly_online_store",
            refresh_online_store,
            "5 * * * *",
            "Five minutes past each hour, copies new rows of the offline store to the online store. Not needed if "
            "another process already does this.",
        ),
        schedule(
            "daily_everyone",
            request_everyone,
            "0 1 * * *",
            "At 1:00 UTC, writes a batch request with every entity as of midnight, which new_batch_request scores.",
            _request_everyone,
        ),
        schedule(
            "daily_replay",
            replay_day,
            "30 0 * * *",
            "At 0:30 UTC, counts and replays the prediction log of the day before.",
            _replay_day_before,
        ),
    )


def _request_everyone(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Request a run for the day of the tick, which may start later."""
    as_of = context.scheduled_execution_time.date().isoformat()
    return dg.RunRequest(run_config={"ops": {"everyone": {"config": {"as_of": as_of}}}})


def _replay_day_before(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Request a run for the day before the tick."""
    day = context.scheduled_execution_time.date() - timedelta(days=1)
    return dg.RunRequest(partition_key=day.isoformat())
