"""Read one batch request, join it with features as of its timestamps, score it, and publish the result.

This package imports neither the online readers nor Dagster.
"""
