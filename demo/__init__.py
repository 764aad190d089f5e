"""The running example, ranking drivers for a ride: its data, its training, and the servers that demonstrate it.

All code that is specific to drivers is here and in feature_repo/. Nothing imports this package.
"""
