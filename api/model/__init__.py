"""The model version that serves, and how it got there: load, admit and swap versions; probe the feature store.

Knows nothing of HTTP requests.
"""
