"""Reads what Dagster's instance and the request folder record: requests, observations, runs. Starts nothing."""
