"""Micro-batching: requests that wait at the same time share one lookup and one prediction.

Knows nothing of HTTP, logs or metrics.
"""
