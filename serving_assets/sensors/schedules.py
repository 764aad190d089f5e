"""When the online store is brought up to now."""

import dagster as dg

from serving_assets.sensors.jobs import refresh_online_store

# Stopped unless somebody starts it: who materializes with `feast materialize-incremental` or a stream already must not
# get a second writer by starting the daemon, and how often features come is not for us to know. Dagit's switch starts
# it; another rhythm is another schedule of the same job.
hourly_online_store = dg.ScheduleDefinition(
    name="hourly_online_store",
    job=refresh_online_store,
    cron_schedule="5 * * * *",
    execution_timezone="UTC",
    default_status=dg.DefaultScheduleStatus.STOPPED,
    description="Five minutes past each hour: what is new in the offline store goes to the online store. Off until "
    "somebody starts it here, because another process may do this already.",
)
