"""Where a class that a feature_store.yaml may still name was before version 0.2."""

raise ImportError(
    "scoring.redis_store.BulkRedisOnlineStore is no longer needed: "
    "write type: redis under online_store in feature_store.yaml."
)
