"""What Dagster's instance and the request folder record: requests, observations, runs. Reads them; starts nothing."""
