"""Micro-batching: requests that wait at the same time share one lookup and one prediction.

Does not import metrics, logs or HTTP; only carries, for each micro-batch, what was already reported.
"""
