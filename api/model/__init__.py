"""Loading, admitting and swapping the served model version: load, admit and swap versions; probe the feature store.

Knows nothing of HTTP requests.
"""
