"""Whole files, on a local disk or in S3: located, copied, written atomically, and Parquet in bounded memory.

Knows nothing of models, features or requests.
"""
