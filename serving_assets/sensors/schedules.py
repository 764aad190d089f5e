"""Schedule for updating the online store."""

import dagster as dg

from serving_assets.sensors.jobs import refresh_online_store

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
