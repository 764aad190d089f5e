"""Loads, admits and swaps the served version, defines its requests, and probes the feature store.

Handles no routes or headers.
"""
