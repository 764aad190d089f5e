"""Logs, metrics and traces, and the context of a request that they report. Knows no routes."""
