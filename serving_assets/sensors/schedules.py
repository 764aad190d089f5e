"""Schedules: updating the online store, and scoring every entity."""

import dagster as dg

from serving_assets.sensors.jobs import refresh_online_store, request_everyone

# Stopped by default, so that no second writer starts if another process (`feast materialize-incremental`, a stream)
# already fills the store. Start it in Dagit. For another interval, add a schedule of the same job.
hourly_online_store = dg.ScheduleDefinition(
    name="hourly_online_store",
    job=refresh_online_store,
    cron_schedule="5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Five minutes past each hour, copies new rows of the offline store to the online store. Stopped by "
    "default, because another process may already do this: start it here.",
)


@dg.schedule(
    name="daily_everyone",
    job=request_everyone,
    cron_schedule="0 1 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="At 1:00 UTC, writes a batch request with every entity as of midnight, which new_batch_request scores.",
)
def daily_everyone(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Request a run for the day of the tick, which may start later."""
    as_of = context.scheduled_execution_time.date().isoformat()
    return dg.RunRequest(run_config={"ops": {"everyone": {"config": {"as_of": as_of}}}})
