"""Batch scoring as a Dagster asset graph: Feast definitions, model version, batch input, batch output, and its sensors.

`serving_assets.definitions` is the code location. Importing it opens nothing and loads neither Feast nor MLflow.
"""
