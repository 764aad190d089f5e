"""Arrow types and conversions: the model signature, timestamps, values as strings.

Knows pyarrow only: no model, no store, no file.
"""
