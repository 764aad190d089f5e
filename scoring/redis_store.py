"""Former location of a class that is no longer needed; raises ImportError with its replacement."""

raise ImportError(
    "scoring.redis_store.BulkRedisOnlineStore is no longer needed: "
    "write type: redis under online_store in feature_store.yaml."
)
