"""Loads model versions from the MLflow Model Registry and validates them.

This package imports no code for features, requests or predictions. Feast is imported only because MLflow's client needs
it (`scoring.imports.import_feast`).
"""
