"""Where a class that a feature_store.yaml may still name was before version 0.2."""

raise ImportError(
    "scoring.offline_store.AsofOfflineStore moved: "
    "write type: scoring.feast_plugins.offline_store.AsofOfflineStore in feature_store.yaml."
)
