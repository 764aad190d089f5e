"""After the fact: the prediction log and its replay, drift from a baseline, and the promotion of a challenger.

Imports no Dagster.
"""
