"""From entity keys to predictions: the one way that batch and online scoring share.

This package knows Feast, MLflow and scikit-learn. It knows neither Dagster nor Litestar nor HTTP, and importing any of
its modules opens nothing and reads no environment variable.
"""
