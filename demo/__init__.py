"""The running example: rank drivers for a ride. Its data, its training, and the start of every server that shows it.

Everything that knows drivers stands here and in feature_repo/. Nothing imports this package.
"""
