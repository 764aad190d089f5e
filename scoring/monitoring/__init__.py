"""The prediction log's columns, its replay in batch, its copy for Feast, and the comparison of two versions.

Imports no Dagster.
"""
