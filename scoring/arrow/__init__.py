"""Arrow types and conversions: the model signature, timestamps, values as strings.

Of this project, the package imports only `scoring.errors`. It accesses no model, store or file.
"""
