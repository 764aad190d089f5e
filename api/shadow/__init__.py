"""Scores requests with a second version after they were answered, for comparison: the challenger.

Nothing here delays or changes an answer: what does not fit is dropped and counted.
"""
