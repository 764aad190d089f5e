"""One batch request: read it, join it with features as of its timestamps, score it, publish the result.

Knows nothing of online stores or Dagster.
"""
