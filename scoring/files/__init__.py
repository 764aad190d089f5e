"""Locates, copies and atomically writes files on a local disk or in S3, and handles Parquet in bounded memory.

This package imports no code for models, features or requests.
"""
