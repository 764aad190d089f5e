"""Logs, metrics, traces and the prediction log, and the context of a request that they report. Knows no routes."""
