"""The command line `model-serving`.

It scores files without Dagster through `scoring`, and starts the API and Dagster as processes: it imports neither.
Modules import Feast, MLflow and rich inside functions, so that `--help` and wrong arguments are answered at once.
"""
