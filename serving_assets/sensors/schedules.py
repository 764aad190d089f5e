"""The schedule that updates the online store."""

import dagster as dg

from serving_assets.sensors.jobs import refresh_online_store

# Stopped by default: if `feast materialize-incremental` or a stream already fills the store, starting the daemon must
# not add a second writer. Dagit's switch starts it; another interval is another schedule of the same job.
hourly_online_store = dg.ScheduleDefinition(
    name="hourly_online_store",
    job=refresh_online_store,
    cron_schedule="5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Five minutes past each hour, copies new rows of the offline store to the online store. Off by "
    "default, because another process may already do this: start it here.",
)
