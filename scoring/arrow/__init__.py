"""Arrow types and conversions: the model signature, timestamps, and values as strings for people.

Knows pyarrow only: no model, no store, no file.
"""
