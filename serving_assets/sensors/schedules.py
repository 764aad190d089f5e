"""Schedules: updating the online store, scoring every entity, and replaying the prediction log."""

from datetime import timedelta

import dagster as dg

from serving_assets.sensors.jobs import refresh_online_store, replay_day, request_everyone

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


# In the code location only with its assets.
@dg.schedule(
    name="daily_replay",
    job=replay_day,
    cron_schedule="30 0 * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="At 0:30 UTC, counts and replays the prediction log of the day before.",
)
def daily_replay(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
    """Request a run for the day before the tick."""
    day = context.scheduled_execution_time.date() - timedelta(days=1)
    return dg.RunRequest(partition_key=day.isoformat())
