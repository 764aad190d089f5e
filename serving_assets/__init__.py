"""Batch scoring as a Dagster asset graph: Feast definitions, model version, batch input, batch output, and its sensors.

`serving_assets.definitions` is the code location. Importing it reads the environment, and the names of the variables
in a `.env` file. It opens no store or registry, and loads neither Feast nor MLflow.
"""
