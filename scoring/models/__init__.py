"""Loads model versions from the MLflow Model Registry and validates them.

This package imports no code for features or requests. It imports Feast only because MLflow's client does so in its
first request.
"""
