"""Former location of a class; raises ImportError with the new path."""

raise ImportError(
    "scoring.offline_store.AsofOfflineStore moved: "
    "write type: scoring.feast_plugins.offline_store.AsofOfflineStore in feature_store.yaml."
)
