"""Read requests, observations and runs from Dagster's instance and the request folder. Prepare runs; launch none."""
