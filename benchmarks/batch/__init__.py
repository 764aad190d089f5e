"""Joins, predictions, whole runs and materializations of many rows. Each contender has its own process."""
