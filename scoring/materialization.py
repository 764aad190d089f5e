"""Where a class that a feature_store.yaml may still name was before version 0.2."""

raise ImportError(
    "scoring.materialization.StreamingComputeEngine moved: "
    "write type: scoring.feast_plugins.materialization.StreamingComputeEngine in feature_store.yaml."
)
