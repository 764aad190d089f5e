"""Sensors, schedules, and the jobs that they launch."""
