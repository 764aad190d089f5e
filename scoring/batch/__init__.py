"""One batch request: read, join as of its timestamps, score, publish. Knows nothing of online stores or Dagster."""
