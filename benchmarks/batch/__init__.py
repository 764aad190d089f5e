"""Joins, predictions, whole runs and materializations of many rows, ours and others', each in a process of its own."""
