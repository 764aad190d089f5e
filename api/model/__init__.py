"""What serves and how it got there: load, admit and swap a version; watch the feature store.

Knows nothing of HTTP requests.
"""
