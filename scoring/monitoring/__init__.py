"""Compares predictions of different model versions. Imports neither Dagster nor the engines."""
