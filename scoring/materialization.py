"""Former location of a class; raises ImportError with the new path."""

raise ImportError(
    "scoring.materialization.StreamingComputeEngine moved: "
    "write type: scoring.feast_plugins.materialization.StreamingComputeEngine in feature_store.yaml."
)
