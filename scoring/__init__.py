"""From entity keys to predictions: the one way that batch and online scoring share.

This package knows Feast, MLflow and scikit-learn. It knows neither Dagster nor Litestar nor HTTP, and importing any of
its modules opens nothing and takes no setting from the environment.
"""

import os

# Arrow's own allocators keep what was freed: scoring a million rows peaked 40 MiB higher with them, and was no faster.
# Read when pyarrow is imported.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
