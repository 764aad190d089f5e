"""What starts runs: sensors, schedules and the jobs that they request."""
